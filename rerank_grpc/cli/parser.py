"""The commands and their help; the options themselves are those of config."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from rerank_grpc import __version__
from rerank_grpc.cli import ask, download, serve, verify
from rerank_grpc.cli.judge import bench, calibrate, evaluate, recommend
from rerank_grpc.cli.process import needs
from rerank_grpc.cli.rerank import arguments as rerank
from rerank_grpc.cli.rerank.command import run as run_rerank
from rerank_grpc.cli.scale import batch, plan, ray_config
from rerank_grpc.cli.setup import config, token
from rerank_grpc.cli.top import command as top
from rerank_grpc.config.options import (
    CLIENT_OPTIONS,
    CLIENT_TOKEN_VARIABLE,
    CONFIG_OPTION,
    REST_OPTIONS,
    SERVER_OPTIONS,
    SERVER_TOKEN_VARIABLES,
    UPSTREAM_TOKEN_VARIABLE,
    Option,
    OptionError,
)
from rerank_grpc.errors import suggestion
from rerank_grpc.ray.arguments import PLAN_OPTIONS

EXAMPLES = {
    "": """\
examples:
  rerank-grpc serve                               the embedded model
  rerank-grpc rerank "what is a panda?" docs.txt  rank the lines of a file
  rerank-grpc models                              what is served, in what state
  rerank-grpc models --available                  what can be served
  rerank-grpc health                              exit 0 when it can be called
  rerank-grpc top                                 what it does, renewed every second
  rerank-grpc download bge-reranker-v2-m3         fetch a model beforehand
  rerank-grpc plan bge-reranker-v2-m3             the memory that it needs
  rerank-grpc verify bge-reranker-v2-m3           check its scores here
  rerank-grpc batch --input q.jsonl --output r.jsonl   rerank a file of queries
  rerank-grpc config                              the settings, and where each comes from
  rerank-grpc token new search >> callers.toml    make a caller's token
  rerank-grpc eval --beir scifact                 measure a model by judged queries
  rerank-grpc calibrate --beir scifact            fit scores to the probability of relevance
  rerank-grpc bench --rate 20                     put load on a running server
  rerank-grpc recommend                           measure what this machine could serve
  rerank-grpc ray-config --replicas 2             a file that Ray Serve serves models by
""",
    "ray-config": ray_config.EXAMPLES,
    "plan": plan.EXAMPLES,
    "token": token.EXAMPLES,
    "eval": evaluate.EXAMPLES,
    "calibrate": calibrate.EXAMPLES,
    "bench": bench.EXAMPLES,
    "recommend": recommend.EXAMPLES,
    "serve": f"""\
examples:
  rerank-grpc serve
  rerank-grpc serve --model BAAI/bge-reranker-v2-m3 --device cuda
  rerank-grpc serve --model bge=/srv/models/bge-reranker-base --alias bge-reranker-base-local=bge
  rerank-grpc serve --model bge-reranker-base --alias '*=bge-reranker-base'
  rerank-grpc serve --lazy-model BAAI/bge-reranker-v2-m3
  RERANK_TOKENS=s3cret,0ther rerank-grpc serve --host 0.0.0.0
  rerank-grpc serve --config rerank.toml

Callers name a model by its name (the last part of SOURCE), an alias or its hub id.
Each option has an environment variable, named in brackets, and a key of its own
name in the TOML file of --config; the option wins, then the variable.
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
    "config": """\
examples:
  rerank-grpc config
  rerank-grpc config --config rerank.toml --device cpu
  rerank-grpc config --toml > rerank.toml
  rerank-grpc config --for rest --target rerank.internal:50051

Takes the options of the server that is asked about, starts nothing, and prints
what it would have, and what each setting comes from: its default, a file, a
variable or a flag. Tokens are only counted. --toml prints a file for --config.
""",
    "rerank": rerank.EXAMPLES,
    "models": f"""\
examples:
  rerank-grpc models
  rerank-grpc models --json --target rerank.internal:50051
  rerank-grpc models --available

--available lists the models that this version knows, and those of --catalogue,
without a server. The token to send comes from {CLIENT_TOKEN_VARIABLE} or --token-file.
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
  rerank-grpc convert models/gte-multilingual-reranker-base
  rerank-grpc convert --prompt Qwen3-Reranker-0.6B models/qwen3-reranker-seq-cls

Works offline and runs nothing of a model's own code:
  pytorch_model.bin     becomes model.safetensors, and an older tokenizer tokenizer.json
  gte-multilingual, jina-reranker-v2, llama-nemotron-rerank
                        become classes of transformers, which need no code of theirs
  --prompt MODEL        a classifier made of MODEL gets the files that say how it is asked
Old weights in pickles stay; config.json and others are kept as NAME.original.
""",
    "verify": """\
examples:
  rerank-grpc verify bge-reranker-base
  rerank-grpc verify models/bge-reranker-base --device cuda --precision bf16
  rerank-grpc verify bge-reranker-base --precision int8 --texts queries.jsonl
  rerank-grpc verify embedded

Scores pairs whose score is known, where the catalogue has some, and compares
the packed pass with transformers' own padded one. A --precision below fp32 is
compared with fp32, too, on the texts of a FILE or else of Python's manual: JSON
lines of {"query": "...", "documents": ["...", ...]}, or a query on the first line
and a document on each other. Exits 0 when all are right.
""",
    "top": """\
examples:
  rerank-grpc top
  rerank-grpc top rerank.internal:9090
  rerank-grpc top http://rerank.internal/metrics
  rerank-grpc top --once > figures.txt

Reads what the server tells at --metrics-port, every second: rates are those of
the last 5 s; p50, p99, fill (batches) and busy (the device) those of the last
half minute. full is the share of the queue. q or Ctrl-C leaves.
""",
    "batch": """\
examples:
  rerank-grpc batch --input pairs.jsonl --output scores.jsonl
  rerank-grpc batch --input pairs.parquet --output scores.parquet --model bge-reranker-v2-m3
  rerank-grpc batch --input pairs.jsonl.gz --output scores --workers 2
  rerank-grpc batch --input pairs.parquet --output /shared/scores --ray auto

A row is {"id": ..., "query": "...", "documents": ["...", ...]}, or a flat pair with
"document"; Parquet has columns of these names. The same command again goes on
where a start was ended. Bad rows go to OUTPUT.bad.jsonl with the reason.
Exits 0 when all rows were scored, 3 when some were bad, 1 or 2 when it failed.
""",
    "completion": """\
examples:
  rerank-grpc completion bash > ~/.local/share/bash-completion/completions/rerank-grpc
  rerank-grpc completion zsh > ~/.zfunc/_rerank-grpc
""",
    "health": f"""\
examples:
  rerank-grpc health
  rerank-grpc health --model bge --timeout 2
  rerank-grpc health --here

Exits 0 when the model can be called, else 1. The token to send comes from
{CLIENT_TOKEN_VARIABLE} or --token-file.

--here is for the health check of a container: it finds the server that runs in
it and asks that one, serve by gRPC and rest by HTTP, whichever flags and file
of settings it was started with. It needs no token.
""",
}


_LAYOUT: Any = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}


class Parser(argparse.ArgumentParser):
    """Raises OptionError instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see {self.prog} --help)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; `run` takes the result, returns the exit status; `flags` are texts by option."""
    parser, commands = _build()
    parsed, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        command = commands[parsed.command]
        flag = unknown[0].partition("=")[0]
        known = [text for action in command._actions for text in action.option_strings]
        kind = "option" if flag.startswith("-") else "argument"
        raise OptionError(f"unknown {kind} {flag}{suggestion(flag, known)} (see {command.prog} --help)")
    parsed.flags = {key.partition(":")[2]: text for key, text in vars(parsed).items() if ":" in key}
    return parsed


def _build() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="rerank-grpc",
        description="Serves reranker models over gRPC, and calls such a server.",
        epilog=EXAMPLES[""],
        **_LAYOUT,
    )
    parser.add_argument("--version", action="version", version=f"rerank-grpc {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    built = {}
    for command in COMMANDS:
        added = built[command.name] = subparsers.add_parser(
            command.name,
            usage=" ".join(["rerank-grpc", command.name, *_usage(command)]),
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog=EXAMPLES[command.name],
            **_LAYOUT,
        )
        added.set_defaults(run=command.run)
        for name, keywords in command.arguments:
            added.add_argument(*name.split(", "), **keywords)  # as "-o, --output"
        for option in command.options:
            _add(added, option)
    return parser, built


def _usage(command: Command) -> Iterator[str]:
    if command.options or any(name.startswith("-") for name, _ in command.arguments):
        yield "[OPTION ...]"
    for name, keywords in command.arguments:
        if not name.startswith("-"):
            word = keywords.get("metavar") or "|".join(keywords["choices"])
            many = {"+": f"{word} [{word} ...]", "*": f"[{word} ...]", "?": f"[{word}]"}
            yield many.get(keywords.get("nargs", ""), word)


def _add(command: Parser, option: Option) -> None:
    notes = [f"default: {option.default_text}"] if option.default_text else []
    if option.repeatable:
        notes.append("repeatable")
    help_text = f"{option.help} ({'; '.join(notes)})" if notes else option.help
    kind: dict[str, Any] = {"action": "append" if option.repeatable else "store", "metavar": option.metavar}
    command.add_argument(
        f"--{option.name}",
        dest=f"option:{option.name}",
        help=f"{help_text} [{option.variable}]".replace("%", "%%"),
        **({"action": "store_const", "const": "on"} if option.switch else kind),
    )


def _top_n(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _print_completion(parsed: argparse.Namespace) -> int:
    with needs("completion", 'pip install "rerank-grpc[completion]"'):
        import shtab
    parser, commands = _build()
    for action in (action for command in commands.values() for action in command._actions):
        if action.metavar in ("FILE", "DIR"):
            action.complete = shtab.FILE if action.metavar == "FILE" else shtab.DIR  # type: ignore[attr-defined]
    print(shtab.complete(parser, parsed.shell))
    return 0


Argument: TypeAlias = tuple[str, Mapping[str, Any]]


def _argument(name: str, **keywords: Any) -> Argument:
    return name, keywords


TOP_N = _argument("--top-n", metavar="N", type=_top_n, default=0, help="print only the N best")
MODEL = _argument("--model", metavar="NAME", help="the model to ask (default: the server's)")
AVAILABLE = _argument(
    "--available", action="store_true", help="list the models that are known, without a server"
)
HERE = _argument(
    "--here", action="store_true", help="ask the server that runs in this container, serve or rest"
)
JSON = _argument("--json", action="store_true", help="print JSON, for machines")
FETCHED = _argument("models", metavar="MODEL", nargs="+", help="a hub id, or a name of the catalogue")
TEXTS = _argument(
    "--texts",
    metavar="FILE",
    help="the texts to compare a lower precision on: JSON lines, or a query and documents, one a line",
)
CHECKED = _argument("models", metavar="MODEL", nargs="+", help="embedded, a directory, a hub id or a name")
PLANNED = _argument("model", metavar="MODEL", help="embedded, a directory, a hub id or a name")
DIRECTORIES = _argument("directories", metavar="DIR", nargs="+", help="a directory with a checkpoint")
PROMPT = _argument("--prompt", metavar="MODEL", default="", help="whose prompt a classifier made of it reads")
OF = _argument(
    "--for",
    dest="of",
    choices=("serve", "rest"),
    default="serve",
    help="the server to ask about (default: serve)",
)
TOML = _argument("--toml", action="store_true", help="print a file of settings, for --config")
ENDPOINT = _argument(
    "endpoint",
    metavar="HOST:PORT",
    nargs="?",
    type=top.endpoint,
    help="where the server tells its metrics, or a URL (default: this machine's --metrics-port)",
)
ONCE = _argument("--once", action="store_true", help="print plain text once, after two scrapes")
RAY_SERVICE = _argument("--ray-service", action="store_true", help="print a RayService, for KubeRay")
IMAGE = _argument(
    "--image",
    metavar="IMAGE",
    default="rerank-grpc:ray",
    help="a RayService's image (default: rerank-grpc:ray)",
)
GRPC_PORT = _argument(
    "--grpc-port", metavar="PORT", type=ray_config.port, default=9_000, help="Serve's port (default: 9000)"
)
PLAN = [
    _argument(f"--{name}", metavar=metavar, help=meaning)
    for name, (_, metavar, meaning) in PLAN_OPTIONS.items()
]
TOKEN = (
    _argument("action", choices=("new", "list"), help="make a caller's token, or list the callers of a file"),
    _argument("what", metavar="NAME|FILE", help="the new caller's name, or the file"),
    _argument("--rights", metavar="LIST", help="rerank, list, admin, with commas (default: rerank,list)"),
    _argument("--models", metavar="LIST", help="the models that it may call, with commas (default: all)"),
    _argument(
        "--expires", metavar="DATE", help="when it is refused from, such as 2027-01-31 (default: never)"
    ),
    _argument("--documents-per-second", metavar="N", help="how many documents it may send, on average"),
    _argument("--tokens-per-second", metavar="N", help="how many tokens of text instead"),
    _argument("--burst", metavar="N", help="how many at once after a pause (default: those of 10 s)"),
    _argument("--queue-share", metavar="0..1", help="how much of a model's queue it may fill (default: 1)"),
    _argument("--save", metavar="FILE", help="a new file for the token, which is then not printed"),
    JSON,
)
SHELL = _argument("shell", choices=("bash", "zsh"), help="the shell that reads it")


BATCH = (
    _argument("--input", metavar="FILE", required=True, help="rows: .jsonl, .jsonl.gz or .parquet"),
    _argument(
        "--output",
        metavar="OUT",
        required=True,
        help="a .jsonl or .parquet file, or a folder for parts in the input's form",
    ),
    _argument(
        "--model",
        metavar="MODEL",
        default="embedded",
        help="embedded, a directory, a hub id or a name (default: embedded)",
    ),
    _argument("--top-n", metavar="N", type=_top_n, default=0, help="keep only the N best of a row"),
    _argument("--instruction", metavar="TEXT", default="", help="for the rows without one of their own"),
    _argument(
        "--workers",
        metavar="N",
        type=_top_n,
        help="processes with a model of their own (default: one for each GPU; one on a CPU)",
    ),
    _argument(
        "--block-pairs",
        metavar="N",
        type=_top_n,
        help="pairs that are scored and written together (default: as many as fill the device's batches)",
    ),
    _argument("--ray", metavar="auto|ADDRESS", help="work on a cluster of Ray instead of this machine"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its summary in the list of commands, its function, its arguments and options."""

    name: str
    summary: str
    run: Callable[[argparse.Namespace], int]
    arguments: Sequence[Argument] = ()
    options: Sequence[Option] = ()


def _server_options(*names: str) -> list[Option]:
    return [option for option in SERVER_OPTIONS if option.name in names]


CATALOGUE_OPTION = _server_options("catalogue")
BATCH_OPTIONS = _server_options(
    "models-dir", "catalogue", "device", "precision", "kernels", "max-batch-tokens"
)
# A server that runs is asked with the client's options; a model that is loaded here takes the others.
JUDGE_OPTIONS = [*CLIENT_OPTIONS, *BATCH_OPTIONS]
VERIFY_OPTIONS = _server_options("models-dir", "catalogue", "device", "precision", "kernels")
COMMANDS = (
    Command("serve", "serve models", serve.run, (), (CONFIG_OPTION, *SERVER_OPTIONS)),
    Command(
        "rest", "serve JSON in front of gRPC servers", serve.run_rest, (), (CONFIG_OPTION, *REST_OPTIONS)
    ),
    Command(
        "config", "print the settings, and where each comes from", config.run, (OF, TOML), config.options()
    ),
    Command("token", "make a caller's token, or list the callers of a file", token.run, TOKEN),
    Command(
        "rerank",
        "rank the documents of files by their relevance to a query",
        run_rerank,
        (*rerank.ARGUMENTS, TOP_N, MODEL, JSON),
        CLIENT_OPTIONS,
    ),
    Command(
        "models",
        "list what a server serves, or what can be served",
        ask.models,
        (AVAILABLE, JSON),
        (*CLIENT_OPTIONS, *CATALOGUE_OPTION),
    ),
    Command("health", "tell whether a model can be called", ask.health, (MODEL, HERE, JSON), CLIENT_OPTIONS),
    Command("download", "fetch models from the hub", download.download, (FETCHED,), CATALOGUE_OPTION),
    Command(
        "convert",
        "rewrite a model's files into a form that is served",
        download.convert,
        (DIRECTORIES, PROMPT),
        CATALOGUE_OPTION,
    ),
    Command("plan", "tell the memory that a model needs", plan.run, (PLANNED, JSON), BATCH_OPTIONS),
    Command("verify", "check a model's scores on this machine", verify.run, (CHECKED, TEXTS), VERIFY_OPTIONS),
    Command("batch", "rerank a file of queries and their documents", batch.run, BATCH, BATCH_OPTIONS),
    Command("eval", "measure models by judged queries", evaluate.run, evaluate.ARGUMENTS, JUDGE_OPTIONS),
    Command(
        "calibrate",
        "fit the map from a model's logits to the probability of relevance",
        calibrate.run,
        calibrate.ARGUMENTS,
        JUDGE_OPTIONS,
    ),
    Command("bench", "put load on a running server, and measure", bench.run, bench.ARGUMENTS, CLIENT_OPTIONS),
    Command(
        "recommend",
        "measure what this machine could serve",
        recommend.run,
        recommend.ARGUMENTS,
        BATCH_OPTIONS,
    ),
    Command("top", "show what a running server does, renewed every second", top.run, (ENDPOINT, ONCE)),
    Command(
        "ray-config",
        "print the file by which Ray Serve serves models",
        ray_config.run,
        (RAY_SERVICE, IMAGE, GRPC_PORT, *PLAN),
        (CONFIG_OPTION, *ray_config.options()),
    ),
    Command("completion", "print a shell's completion of these commands", _print_completion, (SHELL,)),
)
