"""Builds the Java client and its tests with Debian's packages, and sends the list through it.

Maven is not needed: protoc generates, javac compiles, into .tools/conformance/java. The stubs of google.rpc,
which Debian's grpc-java lacks, are generated from the files that googleapis-common-protos brings.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from clients.conformance.contract.tools import Missing
from clients.conformance.run import BUILT, ROOT

SOURCES = ROOT / "clients" / "java" / "src"
PROTO = ROOT / "proto"
BUILD = BUILT / "java"
JARS = Path("/usr/share/java")
# Debian's Netty has TLS with ALPN only by this library, and looks for it under another name.
NATIVE, SOUGHT = "/usr/lib/*/jni/libnetty-tcnative.so", "libnetty_tcnative.so"

# By package of Debian: what of it is needed.
LIBRARIES = {
    "libgrpc-java": (
        *("grpc-api", "grpc-context", "grpc-core", "grpc-netty", "grpc-protobuf", "grpc-protobuf-lite"),
        "grpc-stub",
    ),
    "libprotobuf-java": ("protobuf-util",),
    "libnetty-java": (
        *("netty-buffer", "netty-codec", "netty-codec-http", "netty-codec-http2", "netty-codec-socks"),
        *("netty-common", "netty-handler", "netty-handler-proxy", "netty-resolver", "netty-transport"),
    ),
    "libnetty-tcnative-java": ("netty-tcnative",),
    "libperfmark-java": ("perfmark-api",),
    "libguava-java": ("guava",),
    "libgoogle-gson-java": ("gson",),
    "libgeronimo-annotation-1.3-spec-java": ("geronimo-annotation-1.3-spec",),
    "junit4": ("junit4", "hamcrest"),
}
PROGRAMS = {
    "default-jdk-headless": "javac",
    "protobuf-compiler": "protoc",
    "protobuf-compiler-grpc-java-plugin": "grpc_java_plugin",
}


def command() -> list[str]:
    """Builds what has changed; returns the program's command."""
    return java("io.github.rerankgrpc.conformance.Conformance")


def java(main: str, *arguments: str) -> list[str]:
    """Builds what has changed; returns the command that runs a class."""
    build()
    return ["java", f"-Djava.library.path={BUILD / 'native'}", "-cp", classpath(), main, *arguments]


def build() -> None:
    """Generates and compiles, unless these very sources are compiled already; raises Missing."""
    check()
    stamp, made = BUILD / "built", digest()
    if stamp.exists() and stamp.read_text() == made:
        return
    shutil.rmtree(BUILD, ignore_errors=True)
    for folder in ("generated", "classes", "native"):
        (BUILD / folder).mkdir(parents=True)
    shutil.copy(next(libraries()), BUILD / "native" / SOUGHT)
    generate()
    sources = [*(BUILD / "generated").rglob("*.java"), *SOURCES.rglob("*.java")]
    # Generated code uses what protobuf has deprecated.
    words = ["javac", "--release", "11", "-encoding", "UTF-8", "-proc:none", "-nowarn", "-Xlint:-options"]
    run([*words, "-cp", classpath(), "-d", str(BUILD / "classes"), *map(str, sorted(sources))])
    stamp.write_text(made)


def check() -> None:
    """Raises Missing, naming the packages of Debian that are not installed."""
    packages = [package for package, program in PROGRAMS.items() if shutil.which(program) is None]
    packages += [
        package
        for package, names in LIBRARIES.items()
        if not all((JARS / f"{name}.jar").exists() for name in names)
    ]
    if next(libraries(), None) is None:
        packages.append("libnetty-tcnative-jni")
    if packages:
        raise Missing(f"apt install {' '.join(packages)}")


def libraries() -> Iterator[str]:
    """Yields the native library of TLS, if it is installed."""
    return glob.iglob(NATIVE)


def classpath() -> str:
    """Returns the compiled classes and the libraries."""
    jars = (str(JARS / f"{name}.jar") for names in LIBRARIES.values() for name in names)
    return ":".join([str(BUILD / "classes"), *jars])


def generate() -> None:
    """Generates the stubs of rerank.v1, and the messages of google.rpc."""
    out, plugin = BUILD / "generated", shutil.which("grpc_java_plugin")
    plugins = [f"--plugin=protoc-gen-grpc={plugin}", f"--java_out={out}", f"--grpc_out={out}"]
    contract = [str(path.relative_to(PROTO)) for path in contracts()]
    run(["protoc", f"-I{PROTO}", f"-I{google()}", *plugins, *contract])
    names = ("google/rpc/error_details.proto", "google/rpc/status.proto")
    run(["protoc", f"-I{google()}", f"--java_out={out}", *names])


def contracts() -> list[Path]:
    """Lists the files of the contract."""
    return sorted((PROTO / "rerank").rglob("*.proto"))


def google() -> Path:
    """Finds the folder that google/rpc/*.proto lie under."""
    spec = importlib.util.find_spec("google.rpc")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("pip install googleapis-common-protos")
    return Path(next(iter(spec.submodule_search_locations))).parent.parent


def digest() -> str:
    """Returns a digest of all that the build reads."""
    found = hashlib.sha256()
    for path in inputs():
        found.update(str(path).encode() + path.read_bytes())
    return found.hexdigest()


def inputs() -> Iterator[Path]:
    """Yields the files that the build reads, besides those of the system."""
    yield Path(__file__)
    yield from contracts()
    yield from sorted(SOURCES.rglob("*.java"))


def run(words: list[str]) -> None:
    """Runs a tool; ends this program with the tool's words if it fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words[0]} failed:\n{done.stdout}{done.stderr}"[:8000])
