"""gRPC's own account of this process's servers, channels and sockets, for operators on the admin port.

grpcio keeps these counts in any case, and an answer reads them. add_channelz_servicer would run its methods
on the server's one thread, without bounds on the wait for their callers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1.channelz import ChannelzServicer

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.server.guard import Edge
from rerank_grpc.server.lanes import Lane, Parse, Service, parser
from rerank_grpc.server.patience import Patience

CHANNELZ_SERVICE = pb.DESCRIPTOR.services_by_name["Channelz"].full_name
CHANNELZ_THREADS = 32
# Entries of one answer, as many as gRPC gives by itself; a port may have thousands of sockets.
MOST_RESULTS = 100
# A list of servers is kept for so many times as long as it took to read.
KEPT_FACTOR = 20

# Takes a question and its context; of grpcio's own, None where it has set a status instead.
Ask = Callable[[Any, grpc.ServicerContext], Any]


def channelz_service(patience: Patience, edge: Edge) -> Service:
    """Makes grpc.channelz.v1.Channelz, in a lane that nothing else can fill."""
    lane = Lane("channelz", patience, edge, threads=CHANNELZ_THREADS)
    servers = ServerList()
    methods: Mapping[str, tuple[type[Message], Ask]] = {
        "GetTopChannels": (pb.GetTopChannelsRequest, _top_channels),
        "GetServers": (pb.GetServersRequest, servers.page),
        "GetServer": (pb.GetServerRequest, servers.one),
        "GetServerSockets": (pb.GetServerSocketsRequest, ChannelzServicer.GetServerSockets),
        "GetChannel": (pb.GetChannelRequest, ChannelzServicer.GetChannel),
        "GetSubchannel": (pb.GetSubchannelRequest, ChannelzServicer.GetSubchannel),
        "GetSocket": (pb.GetSocketRequest, ChannelzServicer.GetSocket),
    }
    handlers = {
        method: lane.unary(method, partial(_answer, ask), bounded_parser(kind))
        for method, (kind, ask) in methods.items()
    }
    return Service(CHANNELZ_SERVICE, handlers, [lane])


class ServerList:
    """The servers of this process, read anew only where reading takes a small share of the time.

    gRPC's core walks over all connections for it, some 40 µs each, and no other thread of Python runs
    meanwhile: whoever asks again and again gets a list that is a little old, and slows no call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: Any = None
        self._kept_until = 0.0

    def page(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Answers GetServers."""
        kept = self._read(context)
        if kept is None:
            return None
        listed = [each for each in kept.server if each.ref.server_id >= request.start_server_id]
        end = kept.end and len(listed) <= request.max_results
        return pb.GetServersResponse(server=listed[: request.max_results], end=end)

    def one(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Answers GetServer; a server that a page would not show is not there."""
        kept = self._read(context)
        if kept is None:
            return None
        found = [each for each in kept.server if each.ref.server_id == request.server_id]
        return pb.GetServerResponse(server=found[0]) if found else _not_found(context)

    def _read(self, context: grpc.ServicerContext) -> Any:
        with self._lock:
            begun = monotonic()
            if self._kept is None or begun >= self._kept_until:
                self._kept = ChannelzServicer.GetServers(pb.GetServersRequest(), context)
                read = monotonic()
                self._kept_until = read + KEPT_FACTOR * (read - begun)
            return self._kept


def bounded_parser(kind: type[Message]) -> Parse:
    """Makes the Parse of a question; it refuses negative numbers, and bounds the results asked for."""
    parse = parser(kind)
    paged = "max_results" in kind.DESCRIPTOR.fields_by_name

    def parse_bounded(data: bytes) -> Any:
        request = parse(data)
        for field, value in request.ListFields():
            if value < 0:  # gRPC's core takes some for "all"
                raise InvalidRequest.of(field.name, "is negative")
        if paged:
            request.max_results = min(request.max_results or MOST_RESULTS, MOST_RESULTS)
        return request

    return parse_bounded


def _top_channels(request: Any, context: grpc.ServicerContext) -> Any:
    """Cuts grpcio's answer, which has as many channels as gRPC gives by itself."""
    answer = ChannelzServicer.GetTopChannels(request, context)
    if answer is not None and len(answer.channel) > request.max_results:
        del answer.channel[request.max_results :]
        answer.end = False
    return answer


def _answer(ask: Ask, request: Any, context: grpc.ServicerContext) -> Any:
    answer = ask(request, context)
    if answer is None:
        # grpcio's own text speaks of arguments of a function.
        if context.code() is grpc.StatusCode.NOT_FOUND:  # type: ignore[attr-defined]
            _not_found(context)
        context.abort(grpc.StatusCode.INTERNAL, "grpcio-channelz does not understand grpcio: update it")
    return answer


def _not_found(context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.NOT_FOUND, "there is none of that id: it may have been closed")
    raise AssertionError("abort returned")
