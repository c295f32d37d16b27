"""Every setting with its default, and how it is read; nothing else reads the environment.

settings.py   what can be set: frozen dataclasses
parsing.py    from a text to a value
options.py    the table: an option is a flag, a variable and a line of --help at once
reading.py    flags and environment to settings; flags win
"""

from rerank_grpc.config.options import (
    CLIENT_OPTIONS,
    CLIENT_TOKEN_VARIABLE,
    GATEWAY_OPTIONS,
    SERVER_OPTIONS,
    SERVER_TOKEN_VARIABLES,
    UPSTREAM_TOKEN_VARIABLE,
    Option,
    OptionError,
    default,
)
from rerank_grpc.config.parsing import suggestion
from rerank_grpc.config.reading import (
    Flags,
    forgotten_token,
    may_color,
    quiet_grpc,
    read_client_settings,
    read_gateway_settings,
    read_settings,
)
from rerank_grpc.config.settings import (
    EMBEDDED,
    MIB,
    ClientSettings,
    EngineSettings,
    GatewaySettings,
    Limits,
    ModelSpec,
    RestSettings,
    Settings,
)

__all__ = [
    "CLIENT_OPTIONS",
    "CLIENT_TOKEN_VARIABLE",
    "EMBEDDED",
    "GATEWAY_OPTIONS",
    "MIB",
    "SERVER_OPTIONS",
    "SERVER_TOKEN_VARIABLES",
    "UPSTREAM_TOKEN_VARIABLE",
    "ClientSettings",
    "EngineSettings",
    "Flags",
    "GatewaySettings",
    "Limits",
    "ModelSpec",
    "Option",
    "OptionError",
    "RestSettings",
    "Settings",
    "default",
    "forgotten_token",
    "may_color",
    "quiet_grpc",
    "read_client_settings",
    "read_gateway_settings",
    "read_settings",
    "suggestion",
]
