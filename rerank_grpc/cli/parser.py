"""What can be typed, and its help; the options themselves are config's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from rerank_grpc import __version__
from rerank_grpc.cli import ask, download, rest, serve, verify
from rerank_grpc.config.options import (
    CLIENT_OPTIONS,
    CLIENT_TOKEN_VARIABLE,
    REST_OPTIONS,
    SERVER_OPTIONS,
    SERVER_TOKEN_VARIABLES,
    UPSTREAM_TOKEN_VARIABLE,
    Option,
    OptionError,
)
from rerank_grpc.config.parsing import suggestion

EXAMPLES = {
    "": """\
examples:
  rerank-grpc serve                                  the embedded model, on 127.0.0.1:50051
  rerank-grpc rerank "what is a panda?" docs.txt     rank the lines of a file
  rerank-grpc models                                 what is served, and in what state
  rerank-grpc health                                 exit 0 when the model can be called
  rerank-grpc download bge-reranker-v2-m3            fetch a model, so that serving it needs no network
  rerank-grpc verify bge-reranker-v2-m3              check its scores on this machine
""",
    "serve": f"""\
examples:
  rerank-grpc serve
  rerank-grpc serve --model BAAI/bge-reranker-v2-m3 --device cuda
  rerank-grpc serve --model bge=/srv/models/bge-reranker-base --alias bge-reranker-base-local=bge
  RERANK_TOKENS=s3cret,0ther rerank-grpc serve --host 0.0.0.0

Each option has an environment variable, named in brackets; the option wins.
Tokens come from --token-file and from {", ".join(SERVER_TOKEN_VARIABLES[:-1])}
and {SERVER_TOKEN_VARIABLES[-1]}; all of them are accepted. SIGTERM and Ctrl-C let the calls in
progress finish; a second one ends at once.
""",
    "rest": f"""\
examples:
  rerank-grpc rest --target rerank.internal:50051
  rerank-grpc rest --target a:50051,b:50051 --rest-host 0.0.0.0

Passes JSON calls on to gRPC servers, with their callers' tokens. What /health
and / tell needs a token of its own where the servers want one:
{UPSTREAM_TOKEN_VARIABLE}. With {SERVER_TOKEN_VARIABLES[0]} or --token-file, callers without one of
those tokens are refused here already.
""",
    "rerank": f"""\
examples:
  rerank-grpc rerank "what is a panda?" docs.txt
  rerank-grpc rerank "what is a panda?" a.txt b.txt --top-n 5
  grep -h panda *.txt | rerank-grpc rerank "what is a panda?" - --json

A file holds one document a line; empty lines are skipped. The token to send
comes from {CLIENT_TOKEN_VARIABLE} or --token-file.
""",
    "models": f"""\
examples:
  rerank-grpc models
  rerank-grpc models --json --target rerank.internal:50051

The token to send comes from {CLIENT_TOKEN_VARIABLE} or --token-file.
""",
    "download": """\
examples:
  rerank-grpc download bge-reranker-v2-m3
  rerank-grpc download BAAI/bge-reranker-base@main cross-encoder/ms-marco-MiniLM-L-6-v2
  HF_ENDPOINT=https://hub.internal HF_TOKEN=... rerank-grpc download ORG/NAME

A MODEL is a hub id, or the short name of one in the catalogue; @REVISION picks
another commit, branch or tag. Files go to the hub's cache (HF_HOME). A download
that was cut off goes on where it ended.
""",
    "convert": """\
examples:
  rerank-grpc convert models/bge-reranker-base

For old clones that have only pytorch_model.bin: writes model.safetensors, and
tokenizer.json if it is missing, offline. The old files stay.
""",
    "verify": """\
examples:
  rerank-grpc verify bge-reranker-base
  rerank-grpc verify models/bge-reranker-base --device cuda --precision bf16
  rerank-grpc verify embedded

Scores pairs whose score is known, where the catalogue has some, and compares
the packed pass with transformers' own padded one. Exits 0 when all are right.
""",
    "health": f"""\
examples:
  rerank-grpc health
  rerank-grpc health --model bge --timeout 2

Exits 0 when the model can be called, else 1. The token to send comes from
{CLIENT_TOKEN_VARIABLE} or --token-file.
""",
}


class Parser(argparse.ArgumentParser):
    """Refuses what it does not know by one OptionError, and never guesses."""

    def __init__(self, **options: object) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        """Raises OptionError instead of printing the usage."""
        raise OptionError(f"{message} (see {self.prog} --help)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; the result's `run` takes it and returns the exit status.

    Its `flags` are the texts given for config's options, by option name.
    """
    parser, commands = _build()
    parsed, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        command = commands[parsed.command]
        flag = unknown[0].partition("=")[0]
        known = [text for action in command._actions for text in action.option_strings]
        what = "option" if flag.startswith("-") else "argument"
        raise OptionError(f"unknown {what} {flag}{suggestion(flag, known)} (see {command.prog} --help)")
    parsed.flags = {key.partition(":")[2]: text for key, text in vars(parsed).items() if ":" in key}
    return parsed


def _build() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="rerank-grpc",
        description="Serves reranker models over gRPC, and calls such a server.",
        epilog=EXAMPLES[""],
    )
    parser.add_argument("--version", action="version", version=f"rerank-grpc {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    built = {}
    for name, usage, summary, fill in (
        ("serve", "[OPTION ...]", "serve models", _fill_serve),
        ("rest", "[OPTION ...]", "serve JSON in front of gRPC servers", _fill_rest),
        (
            "rerank",
            "[OPTION ...] QUERY FILE [FILE ...]",
            "rank the lines of files by their relevance to a query",
            _fill_rerank,
        ),
        ("models", "[OPTION ...]", "list what a server serves", _fill_models),
        ("health", "[OPTION ...]", "tell whether a model can be called", _fill_health),
        ("download", "[OPTION ...] MODEL [MODEL ...]", "fetch models from the hub", _fill_download),
        ("convert", "DIR [DIR ...]", "make safetensors of pickled weights", _fill_convert),
        ("verify", "[OPTION ...] MODEL [MODEL ...]", "check a model's scores on this machine", _fill_verify),
    ):
        command = commands.add_parser(
            name,
            usage=f"rerank-grpc {name} {usage}",
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=EXAMPLES[name],
        )
        fill(command)
        built[name] = command
    return parser, built


def _fill_serve(command: Parser) -> None:
    command.set_defaults(run=serve.run)
    _add(command, SERVER_OPTIONS)


def _fill_rest(command: Parser) -> None:
    command.set_defaults(run=rest.run)
    _add(command, REST_OPTIONS)


def _fill_rerank(command: Parser) -> None:
    command.set_defaults(run=ask.rerank)
    command.add_argument("query", metavar="QUERY", help="what the documents are to answer")
    command.add_argument("files", metavar="FILE", nargs="+", help="documents, one a line; - is stdin")
    command.add_argument("--top-n", metavar="N", type=_top_n, default=0, help="print only the N best")
    _add_model(command)
    _add_json(command)
    _add(command, CLIENT_OPTIONS)


def _fill_models(command: Parser) -> None:
    command.set_defaults(run=ask.models)
    _add_json(command)
    _add(command, CLIENT_OPTIONS)


def _fill_health(command: Parser) -> None:
    command.set_defaults(run=ask.health)
    _add_model(command)
    _add_json(command)
    _add(command, CLIENT_OPTIONS)


def _fill_download(command: Parser) -> None:
    command.set_defaults(run=download.download)
    command.add_argument("models", metavar="MODEL", nargs="+", help="a hub id, or a name of the catalogue")
    _add(command, _server_options("catalogue"))


def _fill_convert(command: Parser) -> None:
    command.set_defaults(run=download.convert)
    command.add_argument("directories", metavar="DIR", nargs="+", help="a directory with an old checkpoint")


def _fill_verify(command: Parser) -> None:
    command.set_defaults(run=verify.run)
    command.add_argument(
        "models", metavar="MODEL", nargs="+", help="embedded, a directory, a hub id or a name"
    )
    _add(command, _server_options("models-dir", "catalogue", "device", "precision"))


def _server_options(*names: str) -> list[Option]:
    return [option for option in SERVER_OPTIONS if option.name in names]


def _top_n(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _add_model(command: Parser) -> None:
    command.add_argument("--model", metavar="NAME", help="the model to ask (default: the server's)")


def _add_json(command: Parser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for machines")


def _add(command: Parser, options: Sequence[Option]) -> None:
    """Adds config's options; their texts are read there, by one set of rules."""
    for option in options:
        notes = [f"default: {option.default_text}"] if option.default_text else []
        if option.repeatable:
            notes.append("repeatable")
        help_text = f"{option.help} ({'; '.join(notes)})" if notes else option.help
        command.add_argument(
            f"--{option.name}",
            dest=f"option:{option.name}",
            metavar=option.metavar,
            action="append" if option.repeatable else "store",
            help=f"{help_text} [{option.variable}]".replace("%", "%%"),
        )
