"""The kinds of checkpoints that rerankers come in, written with tiny random weights."""

from tests.models.kinds.chains import CHAINS
from tests.models.kinds.decoders import DECODERS
from tests.models.kinds.encoders import ENCODERS
from tests.models.kinds.kind import Kind
from tests.models.kinds.late import LATE
from tests.models.kinds.refused import REFUSED

KINDS: tuple[Kind, ...] = (*ENCODERS, *DECODERS, *CHAINS, *LATE, *REFUSED)
SERVED = tuple(kind for kind in KINDS if not kind.refused)

__all__ = ["KINDS", "REFUSED", "SERVED", "Kind"]
