"""Which models exist, in which state each is, and who uses them.

registry.py   leases, loading and unloading on request
names.py      by which names a model is called
keeper.py     the thread that loads, evicts and unloads
eviction.py  which model leaves and when, what is too large, when to try again: pure
slot.py      one configured model as it is now
loading.py    from a spec to a model that is warm
memory.py     what a device's models take, and giving it back
"""

from rerank_grpc.registry.building import registry_for
from rerank_grpc.registry.loading import Loader, Preparer, loader_for
from rerank_grpc.registry.registry import Lease, Registry
from rerank_grpc.registry.slot import LoadedModel, OnCancel, describe_loaded, never

__all__ = [
    "Lease",
    "LoadedModel",
    "Loader",
    "OnCancel",
    "Preparer",
    "Registry",
    "describe_loaded",
    "loader_for",
    "never",
    "registry_for",
]
