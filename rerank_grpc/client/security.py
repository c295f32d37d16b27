"""The security of a client's channel: TLS by what the caller names, or plaintext."""

from __future__ import annotations

from typing import NamedTuple

import grpc

from rerank_grpc.config.environment import provided
from rerank_grpc.tls.channel import ChannelTls, TlsSources


class Security(NamedTuple):
    """The credentials of a channel, None for plaintext, the channel's options, and the TLS if it is ours."""

    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, str], ...] = ()
    tls: ChannelTls | None = None

    @classmethod
    def of(cls, tls: bool | None, sources: TlsSources, credentials: object | None = None) -> Security:
        """Reads what a caller names; raises ValueError or TypeError, naming the argument."""
        if credentials is not None:
            if not isinstance(credentials, grpc.ChannelCredentials):
                raise TypeError(f"credentials: grpc.ChannelCredentials, not {type(credentials).__name__}")
            if tls is not None or sources != TlsSources():
                text = "not together with tls, ca, cert, key or server_name, all of which they hold"
                raise ValueError(f"credentials: {text}")
            return cls(credentials)
        if not sources.ask_for_tls(tls):
            return cls(None)
        loaded = sources.load(public=bool(provided("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")))
        made = grpc.ssl_channel_credentials(loaded.ca, loaded.key, loaded.cert)
        name = loaded.server_name
        options = (("grpc.ssl_target_name_override", name),) if name is not None else ()
        return cls(made, options, loaded)
