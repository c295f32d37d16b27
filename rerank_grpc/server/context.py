"""A gRPC context as the Call that the layers below know."""

from __future__ import annotations

from time import monotonic

import grpc

from rerank_grpc.types import Call


def call_of(context: grpc.ServicerContext, longest: float) -> Call:
    """Makes the Call of a context, cancelled when the RPC ends; its deadline is within `longest` seconds.

    grpcio runs the cancellation on its one serving thread: no I/O and no lock
    that is held for long may be in what it calls. It runs after every RPC, also
    after one that went well, and then cancels nothing. An RPC without a deadline
    reports 9.2e18 seconds or None, by version.
    """
    remaining = context.time_remaining()
    call = Call(monotonic() + (longest if remaining is None else min(remaining, longest)))
    if not context.add_callback(call.cancel):
        call.cancel()
    return call
