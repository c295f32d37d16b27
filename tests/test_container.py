"""The image: what its files say fits the package, its settings, and every engine that builds it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from rerank_grpc import __version__
from rerank_grpc.cli.parser import parse
from rerank_grpc.config.options import SERVER_OPTIONS, SERVER_TOKEN_VARIABLES
from rerank_grpc.config.reading import read_rest_settings, read_settings
from rerank_grpc.config.settings import ServerSettings

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "Dockerfile"
REST_PORT = ServerSettings().rest.port
METRICS_PORT = ServerSettings().metrics_port


def instructions():
    """Returns the Dockerfile as (stage, instruction, arguments); comments and line breaks are gone."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stage, found = 0, []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, arguments = line.partition(" ")
        stage += name == "FROM"
        found.append((stage, name, arguments.strip()))
    return found


ALL = instructions()
LAST = max(stage for stage, _, _ in ALL)


def of(name, stage=None):
    return [text for at, instruction, text in ALL if instruction == name and stage in (None, at)]


def environment():
    """Returns the variables that the last stage sets."""
    return dict(word.split("=", 1) for text in of("ENV", LAST) for word in shlex.split(text))


def pip_installs():
    """Returns the words of each `pip install`, without the shell's expansions."""
    commands = [command for text in of("RUN") for command in re.split(r"&&|;", text)]
    plain = [re.sub(r"\$\{\w+:\+.*?\"\}", "", command) for command in commands]
    return [shlex.split(command) for command in plain if re.search(r"\bpip install\b", command)]


def locked(name):
    """Returns the versions of a file of requirements/, and how many hashes each package has there."""
    found = {}
    for entry in re.split(r"\n(?=\w)", (ROOT / "requirements" / name).read_text()):
        if match := re.match(r"([\w.-]+)==([^\s;]+)", entry):
            found[normal(match[1])] = (match[2], entry.count("--hash=sha256:"))
    return found


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_hadolint_has_no_complaint():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail("hadolint is missing: the dev extra installs it")
        pytest.skip("hadolint is missing: the dev extra installs it")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_docker_podman_and_old_buildah_know_every_instruction():
    text = DOCKERFILE.read_text()
    assert "<<" not in text, "a heredoc needs BuildKit"
    assert not re.search(r"^\s*#\s*syntax\s*=", text, re.MULTILINE)
    for _, name, arguments in ALL:
        assert not re.search(r"--(link|mount|parents|exclude|chmod|start-interval)\b", arguments), name


def test_every_install_is_pinned_by_hashes_but_torch_which_its_index_decides():
    libraries, torch, service = pip_installs()
    assert {"--no-deps", "--require-hashes", "requirements/libraries.txt"} < set(libraries)
    assert torch[torch.index("-c") + 1] == "requirements/torch.txt"
    assert torch[-1] == "torch"
    assert {"--no-deps", "--no-build-isolation", "."} < set(service)
    for words in (libraries, torch):
        assert words[words.index("--only-binary") + 1] == ":all:", "what is built here may differ each time"


def test_the_locked_versions_are_the_constraints():
    versions = {normal(name): version for name, version in constraints().items()}
    libraries, torch = locked("libraries.txt"), locked("torch.txt")
    assert "torch" in torch
    assert all(count for _, count in libraries.values())
    pinned = {name: version for name, (version, _) in (libraries | torch).items() if name in versions}
    assert pinned == {name: versions[name] for name in pinned}
    # pip's own tools, and what only other systems install.
    assert (libraries | torch).keys() - versions.keys() <= {"setuptools", "colorama", "httpx2-jsfetch"}


def test_the_lock_has_all_that_the_serving_extras_ask_for_and_none_of_another():
    extras = project()["optional-dependencies"]
    asked = project()["dependencies"] + [
        text for name in ("server", "rest", "otel", "embedded") for text in extras[name]
    ]
    waiting, needed = [*asked], set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = normal(requirement.name)
        # The embedded model's package names it for another use of its files.
        if name in needed or name == "sentence-transformers":
            continue
        needed.add(name)
        for text in metadata.requires(name) or []:
            marker = Requirement(text).marker
            if marker is None or any(
                marker.evaluate({"extra": extra}) for extra in {"", *requirement.extras}
            ):
                waiting.append(text)
    libraries, torch = locked("libraries.txt"), locked("torch.txt")
    assert needed - (libraries | torch).keys() == set()
    others = {
        normal(Requirement(text).name)
        for name in ("dev", "bench", "ray", "batch", "top")
        for text in extras[name]
    }
    assert (libraries.keys() & others) - needed == set()


def test_torch_is_the_cpu_build_unless_told():
    assert of("ARG", 1) == ["TORCH_INDEX=https://download.pytorch.org/whl/cpu"]
    assert locked("torch.txt")["torch"] == (constraints()["torch"], 0)


def test_the_last_stage_brings_no_tool():
    assert not any(re.search(r"\b(pip|apt-get|apk)\b", text) for text in of("RUN", LAST))
    copies = of("COPY", LAST)
    assert copies
    assert all(text.startswith("--from=") for text in copies)


def test_it_runs_as_one_fixed_user_that_is_not_root():
    (user,) = of("USER")
    uid, gid = user.split(":")
    assert int(uid) == int(gid) >= 1_000
    assert f":x:{uid}:{gid}:" in " ".join(of("RUN", LAST))
    # Whatever follows USER could otherwise take it back.
    assert [name for _, name, _ in ALL].index("USER") > [name for _, name, _ in ALL].index("VOLUME")


def test_its_settings_are_the_servers():
    settings = read_settings({}, environment())
    assert settings.host == settings.rest.host == settings.metrics_host == "0.0.0.0"
    alone = read_rest_settings({}, environment())
    assert alone.host == alone.metrics_host == "0.0.0.0"
    assert [str(settings.models_dir)] == of("VOLUME") == ["/models"]
    assert of("EXPOSE") == [f"{settings.port} {REST_PORT} {METRICS_PORT}"]
    assert settings.admin_host == "127.0.0.1"


def test_its_command_serves_and_gets_the_signals_itself():
    (entrypoint,), (command,) = of("ENTRYPOINT"), of("CMD")
    program, *arguments = json.loads(entrypoint) + json.loads(command)
    assert program in project()["scripts"]
    assert parse(arguments).command == "serve"
    assert of("STOPSIGNAL") == ["SIGTERM"]


def health_check():
    (text,) = of("HEALTHCHECK")
    options, _, command = text.partition(" CMD ")
    return dict(re.findall(r"--([a-z-]+)=(\d+)", options)), json.loads(command)


def test_its_health_check_answers_before_the_engine_gives_up():
    options, (program, *arguments) = health_check()
    parsed = parse(arguments)
    assert program in project()["scripts"]
    assert parsed.command == "health"
    assert parsed.here
    assert 0 < float(parsed.flags["timeout"]) < int(options["timeout"])


def test_its_health_check_never_imports_torch():
    _, (_, *arguments) = health_check()
    program = (
        "import sys; from rerank_grpc.cli import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy'; sys.exit(status)"
    )
    variables = {**os.environ, **environment(), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={name: text for name, text in variables.items() if not name.startswith("PYTHON")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # Another test's server may run here, and tests/image has containers with none.
    assert "heavy" not in done.stderr
    assert done.stdout or done.stderr.startswith("rerank-grpc: error: ")


def test_the_engine_is_sent_what_is_copied_and_no_more():
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    sources = {
        source for text in of("COPY") if not text.startswith("--from=") for source in text.split()[:-1]
    }
    for source in sources - {"."}:
        assert any(fnmatch(source, name) or source.startswith(f"{name}/") for name in kept), source
    steps = {"scripts/build_kernels.py", "scripts/prune_image.py"}
    assert kept == {"pyproject.toml", "requirements", "rerank_grpc", project()["readme"], "LICENSE", *steps}


def compose(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_compose_publishes_the_callers_ports_on_this_machine_only_and_the_metrics_never_beyond():
    *of_callers, metrics = compose("compose.yaml")["services"]["rerank"]["ports"]
    for port, mapping in zip((ServerSettings().port, REST_PORT), of_callers, strict=True):
        assert mapping == f"${{PUBLISH:-127.0.0.1}}:{port}:{port}"
    assert metrics == f"127.0.0.1:${{METRICS_PORT:-{METRICS_PORT}}}:{METRICS_PORT}"


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_sets_only_what_the_server_knows(name):
    (service,) = compose(name)["services"].values()
    given = {key: text or "" for key, text in service["environment"].items()}
    read_settings({}, environment() | given)
    assert all(text is None for key, text in service["environment"].items() if "TOKEN" in key)


def test_compose_passes_on_every_way_to_set_a_token():
    given = compose("compose.yaml")["services"]["rerank"]["environment"]
    (file,) = [option.variable for option in SERVER_OPTIONS if option.name == "token-file"]
    # Without a value of its own: what is not set outside is not set inside either.
    assert [given.get(name, "left out") for name in (*SERVER_TOKEN_VARIABLES, file)] == [None] * 4


def test_compose_passes_on_every_option_that_it_does_not_decide():
    given = compose("compose.yaml")["services"]["rerank"]["environment"]
    decided = {"host", "port", "admin-host", "admin-port", "rest-host", "rest-port", "models-dir", "grace"}
    decided |= {"metrics-host", "metrics-port"}
    decided |= {"device"}  # compose.gpu.yaml sets it
    passed = [option for option in SERVER_OPTIONS if option.name not in decided]
    assert [option.variable for option in passed if given.get(option.variable, "left out") is not None] == []


def test_compose_passes_on_where_traces_go():
    given = compose("compose.yaml")["services"]["rerank"]["environment"]
    exporter = ("ENDPOINT", "HEADERS", "INSECURE")
    others = ("SERVICE_NAME", "RESOURCE_ATTRIBUTES", "TRACES_SAMPLER", "TRACES_SAMPLER_ARG")
    names = [*(f"OTEL_EXPORTER_OTLP_{name}" for name in exporter), *(f"OTEL_{name}" for name in others)]
    assert [given.get(name, "left out") for name in names] == [None] * len(names)


def test_compose_keeps_the_models_and_lets_the_server_drain():
    file = compose("compose.yaml")
    service = file["services"]["rerank"]
    (volume, target) = service["volumes"][0].split(":")
    assert volume in file["volumes"]
    assert [target] == of("VOLUME")
    assert int(service["stop_grace_period"].removesuffix("s")) > ServerSettings().grace_seconds + 1
    assert service["shm_size"]
    assert service["read_only"]
    assert "ACCESS_TOKEN" in service["environment"]


def test_compose_for_gpus_takes_the_cuda_that_the_constraints_pin():
    base, gpu = compose("compose.yaml")["services"], compose("compose.gpu.yaml")["services"]
    assert gpu.keys() == base.keys()
    index = gpu["rerank"]["build"]["args"]["TORCH_INDEX"]
    major, minor, *_ = constraints()["cuda-toolkit"].split(".")
    assert index == f"https://download.pytorch.org/whl/cu{major}{minor}"
    assert gpu["rerank"]["image"] != base["rerank"]["image"]
    assert read_settings({}, gpu["rerank"]["environment"]).device == "cuda"


@pytest.fixture
def make_image(tmp_path):
    """Returns a function that runs `make image` among engines that print what they are told."""

    def run(*working, engines=("docker", "podman", "buildah"), variables=()):
        for engine in engines:
            program = tmp_path / engine
            answer = "exit 0" if engine in working else "exit 1"
            program.write_text(f'#!/bin/sh\n[ "$1" = info ] && {answer}\necho {engine} "$@"\n')
            program.chmod(0o755)
        for tool in ("bash", "sh", "env", "dirname", "make"):
            (tmp_path / tool).symlink_to(shutil.which(tool))
        return subprocess.run(
            ["make", "-s", "image", *variables],
            cwd=ROOT,
            env={"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.mark.parametrize(
    ("working", "command"),
    [
        (("docker", "podman", "buildah"), "docker build"),
        (("podman", "buildah"), "podman build --format docker --layers --timestamp 315532800"),
        (
            ("buildah",),
            "buildah build --isolation chroot --network host --format docker --layers --timestamp 315532800",
        ),
    ],
)
def test_make_image_takes_the_first_engine_that_works(make_image, working, command):
    done = make_image(*working)
    version = f"--label org.opencontainers.image.version={__version__}"
    assert (done.returncode, done.stdout.strip()) == (0, f"{command} {version} -t rerank-grpc .")


def test_make_image_passes_on_what_it_is_told(make_image):
    done = make_image(
        "docker",
        variables=[
            "ENGINE=podman",
            "IMAGE=there/rerank:cuda",
            "TORCH_INDEX=https://download.pytorch.org/whl/cu130",
            "IMAGE_ARGS=--no-cache --label 'a=b c'",
        ],
    )
    assert done.stdout.strip() == (
        "podman build --format docker --layers --timestamp 315532800 "
        f"--label org.opencontainers.image.version={__version__} -t there/rerank:cuda "
        "--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 --no-cache --label a=b c ."
    )


def test_make_image_says_what_is_missing(make_image):
    done = make_image(engines=("docker",))
    assert done.returncode == 2
    assert "needs docker, podman or buildah, and none of them works here" in done.stderr
