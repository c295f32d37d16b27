"""Runs real clients against the running server and says what each of them made of it.

    python clients/conformance/run.py quick     those that install fastest, and the frameworks' adapters
    python clients/conformance/run.py all       every one, in ten minutes
    ... --write                                 and writes docs/clients.md's table

Each client lives in an environment of its own under .tools/conformance, built
on the first run and anew when its list of versions changes. The server is the
real command, with the embedded model, a token, and REST beside it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
import venv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import duration_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from rerank_grpc.v1 import rerank_pb2

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILT = ROOT / ".tools" / "conformance"
CALIBRATION = HERE / "contract" / "calibration.json"
PAGE = ROOT / "docs" / "clients.md"
MARKS = ("<!-- conformance: begin -->\n", "<!-- conformance: end -->\n")

TOKEN = "conformance-token"
QUERY = "How do I reset my password?"
DOCUMENTS = (
    "Our office is closed on public holidays.",
    "To choose a new password, open Settings, then Security, and click Forgot password.",
    "Passwords must have at least twelve characters.",
    "密码至少要有十二个字符。",
)

# For clients that obey the environment's proxies on this machine too, and for one that reports its use.
DIRECT = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HAYSTACK_TELEMETRY_ENABLED": "False"}

# Environment → scripts; None is the one of node.
PYTHON = {
    "cohere-5.6.2": ("cohere_sdk.py",),
    "quick": (
        "cohere_sdk.py",
        "voyageai_sdk.py",
        "infinity_sdk.py",
        "xinference_sdk.py",
        "pinecone_sdk.py",
        "huggingface_sdk.py",
    ),
    "full": (
        "langchain_cohere_sdk.py",
        "llama_index_sdk.py",
        "mixedbread_sdk.py",
        "together_sdk.py",
        "dashscope_sdk.py",
        "openrouter_sdk.py",
    ),
    "litellm": ("litellm_sdk.py",),
    "milvus": ("milvus_model_sdk.py",),
    "haystack": ("haystack_tei_grpc_sdk.py",),
    "triton": ("tritonclient_sdk.py",),
    "frameworks": (
        "langchain_adapter.py",
        "llama_index_adapter.py",
        "haystack_adapter.py",
        "rerankers_adapter.py",
    ),
    "frameworks-dspy": ("dspy_adapter.py",),
}
QUICK = ("quick", "frameworks", "frameworks-dspy")
# Adapters of this package, which these environments have in the place of an installed one.
ADAPTERS = {"frameworks": ("langchain", "llama_index", "haystack", "rerankers"), "frameworks-dspy": ("dspy",)}
NODE = ("cohere-ai.mjs", "ai.mjs", "openrouter-sdk.mjs", "connect.mjs", "grpc-js.mjs")


def main() -> int:
    """Builds, runs, prints a table; returns 1 if any check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("which", choices=("quick", "all"))
    parser.add_argument("--write", action="store_true", help="write the table into docs/clients.md")
    given = parser.parse_args()
    environments = QUICK if given.which == "quick" else tuple(PYTHON)
    pythons = {name: build_python(name) for name in environments}
    folder = build_node()
    lines: list[dict[str, str]] = []
    for name in ADAPTERS.keys() & pythons.keys():
        lines += check_types(name, pythons[name])
    with serving() as variables, serving_by_tls() as secure:
        variables |= secure
        for name, python in pythons.items():
            for script in PYTHON[name]:
                ours = {"PYTHONPATH": str(ROOT)} if name in ADAPTERS else {}
                lines += run([str(python), str(HERE / "python" / script)], variables | ours)
        for script in NODE:
            lines += run(["node", str(folder / script)], variables)
    rows = list(table(lines))
    print("\n".join(rows))
    if given.write:
        write(rows)
    failed = [line for line in lines if line["problem"]]
    for line in failed:
        print(f"FAILED {line['client']} {line['version']}, {line['check']}: {line['problem']}")
    print(f"{len(lines)} checks of {len(rows) - 2} clients, {len(failed)} failed")
    return 1 if failed else 0


def build_python(name: str) -> Path:
    """Builds a virtual environment unless one of these very versions is there."""
    folder, wanted = BUILT / name, HERE / "python" / f"{name}.txt"
    python, stamp = folder / "bin" / "python", folder / "built"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        print(f"installing {name} ...", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        if not installed_by_uv(python, wanted):
            pip = f"-m pip install -qq --disable-pip-version-check -r {wanted}"
            subprocess.run([str(python), *pip.split()], check=True)
        stamp.write_text(wanted.read_text())
    return python


def installed_by_uv(python: Path, wanted: Path) -> bool:
    """Installs by uv, which takes a tenth of pip's time; pip does where uv is missing or finds no package."""
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv), "pip", "install", "-q", "--python", str(python), "-r", str(wanted)]
    return uv.exists() and subprocess.run(command, capture_output=True).returncode == 0


def build_node() -> Path:
    """Installs the npm packages unless these very versions are there; returns where the scripts run."""
    folder, lock = BUILT / "node", HERE / "node" / "package-lock.json"
    stamp = folder / "built"
    folder.mkdir(parents=True, exist_ok=True)
    if not stamp.exists() or stamp.read_text() != lock.read_text():
        print("installing node ...", flush=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / name, folder)
        command = ["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=folder, check=True)
        stamp.write_text(lock.read_text())
    for script in ("harness.mjs", *NODE):
        shutil.copy(HERE / "node" / script, folder)
    return folder


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Runs the server; yields the environment that a client's script needs."""
    options = ["--alias", "rerank-test=embedded", "--calibration", f"embedded={CALIBRATION}"]
    # Haystack asks by reflection, and sends no token there.
    with server(*options, "--reflection", "open") as (target, url, inherited):
        yield {
            **inherited,
            **DIRECT,
            "CONFORMANCE_URL": url,
            "CONFORMANCE_TARGET": target,
            "CONFORMANCE_TOKEN": TOKEN,
            "CONFORMANCE_QUERY": QUERY,
            "CONFORMANCE_DOCUMENTS": json.dumps(DOCUMENTS),
            "CONFORMANCE_SCORES": json.dumps(scores(url)),
            "CONFORMANCE_CONTRACT": contract(),
        }


@contextmanager
def serving_by_tls() -> Iterator[dict[str, str]]:
    """Runs a server with a certificate of a CA of its own; yields what a client needs besides."""
    with tempfile.TemporaryDirectory() as folder:
        certify(folder)
        files = ("--tls-cert", f"{folder}/server.pem", "--tls-key", f"{folder}/server.key")
        with server(*files) as (target, url, _):
            yield {
                "CONFORMANCE_TLS_TARGET": target,
                "CONFORMANCE_TLS_URL": url,
                "CONFORMANCE_CA": f"{folder}/ca.pem",
            }


def certify(folder: str) -> None:
    """Makes a CA, and a server's certificate of it."""
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    (Path(folder) / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for words in (
        f"req -x509 {key} -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
        f"req -new {key} -subj /CN=server -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile names "
        "-out server.pem",
    ):
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)


@contextmanager
def server(*options: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Runs a server with a token; yields its target, REST's URL, and the environment without ours."""
    command = [sys.executable, "-m", "rerank_grpc", "serve", "--port", "0", "--admin-port", "off"]
    command += ["--rest-port", "0", "--metrics-port", "off", *options, "--log-level", "warning"]
    command += ["--log-format", "text"]
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("RERANK_")}
    ours = {**inherited, "RERANK_TOKENS": TOKEN, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ours)
    assert process.stderr is not None
    try:
        target, url = said(process.stderr, r"serves rerank\.v1 at (\S+)", r"(https?://[^\s,]+)")
        threading.Thread(target=lambda: list(process.stderr or ()), daemon=True).start()
        yield target, url, inherited
    finally:
        process.terminate()
        process.wait()


def contract() -> str:
    """Returns the contract's descriptors, for clients without code made of it."""
    described = FileDescriptorSet()
    for file in (duration_pb2.DESCRIPTOR, rerank_pb2.DESCRIPTOR):
        copy = described.file.add()
        file.CopyToProto(copy)
        for message in copy.message_type:
            known = file.message_types_by_name[message.name].fields_by_name
            for field in message.field:
                field.json_name = known[field.name].json_name  # which Python's copy leaves out
    return base64.b64encode(described.SerializeToString()).decode()


def said(lines: Iterable[str], *patterns: str) -> list[str]:
    """Reads the server's lines until all patterns were found, in this order; returns the first groups."""
    stream = iter(lines)
    matches = [
        next(filter(None, (re.search(pattern, line) for line in stream)), None) for pattern in patterns
    ]
    if None in matches:
        raise SystemExit("the server ended before it served")
    return [match[1] for match in matches if match]


def scores(url: str) -> list[float]:
    """Asks REST by a plain HTTP call: each document's score, in the documents' order."""
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS}).encode()
    request = urllib.request.Request(f"{url}/v1/rerank", body, {"Authorization": f"Bearer {TOKEN}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine needs no proxy
    with opener.open(request, timeout=60) as response:
        results = json.load(response)["results"]
    found = {result["index"]: result["relevance_score"] for result in results}
    return [found[index] for index in range(len(DOCUMENTS))]


def run(command: list[str], variables: dict[str, str]) -> list[dict[str, str]]:
    """Runs a client's script; one that dies is one failed check."""
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"client"')]
    if done.returncode or not lines:
        problem = f"exit {done.returncode}: {done.stderr[-2000:]}"
        lines.append({"client": Path(command[-1]).stem, "version": "", "check": "runs", "problem": problem})
    return lines


def check_types(name: str, python: Path) -> list[dict[str, str]]:
    """Has mypy check an environment's adapters against the types of their frameworks."""
    modules = [f"--module=rerank_grpc.integrations.{each}" for each in ADAPTERS[name]]
    command = [str(python), "-m", "mypy", "--strict", "--follow-imports=silent", *modules]
    command += [f"--cache-dir={BUILT / name / 'mypy'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    problem = done.stdout + done.stderr if done.returncode else ""
    version = subprocess.check_output([python, "-m", "mypy", "--version"], text=True).split()[1]
    label = f"mypy --strict, adapters of {', '.join(ADAPTERS[name])}"
    return [{"client": label, "version": version, "check": "types", "problem": problem[:2000]}]


def table(lines: list[dict[str, str]]) -> Iterator[str]:
    """Makes one row for each client and version."""
    yield "| client | version | passed | failed |"
    yield "|---|---|---|---|"
    for client, version in dict.fromkeys((line["client"], line["version"]) for line in lines):
        own = [line for line in lines if (line["client"], line["version"]) == (client, version)]
        passed = ", ".join(line["check"] for line in own if not line["problem"])
        failed = ", ".join(line["check"] for line in own if line["problem"])
        yield f"| {client} | {version} | {passed} | {failed} |"


def write(rows: list[str]) -> None:
    """Puts the table between its marks in docs/clients.md."""
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(before + MARKS[0] + "\n".join(rows) + "\n" + MARKS[1] + after, "utf-8")


if __name__ == "__main__":
    sys.exit(main())
