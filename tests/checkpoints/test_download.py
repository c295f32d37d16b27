"""`rerank-grpc download` from a hub on loopback: cut off, damaged, full disks; nothing half is visible."""

from __future__ import annotations

import os
import pty
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import hub
from tests.command import environment, run
from tests.conftest import load
from tests.hub import COMMIT, Hub

WEIGHTS = "model.safetensors"


@pytest.fixture
def served(directories: dict[str, Path]) -> Iterator[Hub]:
    with hub.running(tiny=directories["bert"]) as each:
        yield each


def variables(served: Hub, home: Path, **more: str) -> dict[str, str]:
    """The user's own variables: all of them are the hub's client's."""
    return {
        "HF_ENDPOINT": served.endpoint,
        "NO_PROXY": "localhost",  # in capitals: the hub's client reads it, and gRPC does not
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        **more,
    }


def download(served: Hub, home: Path, *models: str, **more: str) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = run(
        "download", *(models or ("org/tiny",)), **variables(served, home, **more)
    )
    assert "Traceback" not in done.stderr
    return done


def snapshot(home: Path, name: str = "tiny") -> Path:
    return home / "hub" / f"models--org--{name}" / "snapshots" / COMMIT


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("rerank-grpc: error: ")
    return line


def test_a_model_is_fetched_checked_and_can_be_served(
    served: Hub, tmp_path: Path, directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = download(served, tmp_path)
    assert (done.returncode, done.stdout) == (0, f"org/tiny is in {snapshot(tmp_path)}\n")
    assert "fetching model.safetensors" in done.stderr
    assert "\x1b" not in done.stderr, "what is no terminal gets plain lines"
    for path in directories["bert"].iterdir():
        assert (snapshot(tmp_path) / path.name).read_bytes() == path.read_bytes()
    assert not list(tmp_path.rglob("*.incomplete"))
    asked = len(served.asked)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = load("org/tiny", models_dir=tmp_path)
    assert model.card.revision == COMMIT
    assert len(served.asked) == asked, "what is here is looked for nowhere else"


def test_the_token_goes_to_the_hub_and_not_to_where_it_keeps_its_files(served: Hub, tmp_path: Path) -> None:
    assert download(served, tmp_path, HF_TOKEN="hf_canary").returncode == 0
    tokens = {path.startswith("/elsewhere"): sent for _, path, _, sent in served.asked}
    assert tokens == {False: True, True: False}


def test_a_lost_connection_is_taken_up_where_it_ended(served: Hub, tmp_path: Path) -> None:
    served.cuts = [131_072]
    assert download(served, tmp_path).returncode == 0
    assert served.transfers(WEIGHTS) == [None, "bytes=131072-"]


def test_r22_a_download_that_was_cut_off_goes_on_and_is_not_visible_before(
    served: Hub, tmp_path: Path
) -> None:
    served.cuts, served.down = [262_144], True
    assert "the next try goes on" in complaint(download(served, tmp_path))
    assert not (snapshot(tmp_path) / "config.json").exists()
    (partial,) = tmp_path.rglob("*.incomplete")
    assert partial.stat().st_size == 262_144
    offline = download(served, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids" in complaint(offline)
    served.down = False
    assert download(served, tmp_path).returncode == 0
    assert served.transfers(WEIGHTS)[-1] == "bytes=262144-"
    assert hub.digest(snapshot(tmp_path) / WEIGHTS) == hub.digest(served.models["org/tiny"] / WEIGHTS)


def test_a_hub_that_sends_all_of_a_file_again_is_no_damage(served: Hub, tmp_path: Path) -> None:
    served.cuts, served.ranges = [131_072], False
    assert download(served, tmp_path).returncode == 0
    assert served.transfers(WEIGHTS) == [None, "bytes=131072-"]


def test_a_connection_that_is_lost_without_a_byte_is_given_up(served: Hub, tmp_path: Path) -> None:
    served.cuts = [131_072] + [0] * 5
    assert download(served, tmp_path).returncode == 0
    shutil.rmtree(tmp_path)
    served.cuts = [131_072] + [0] * 6
    assert "the next try goes on" in complaint(download(served, tmp_path))


def test_more_than_the_whole_file_is_begun_anew(served: Hub, tmp_path: Path) -> None:
    served.cuts, served.down = [262_144], True
    complaint(download(served, tmp_path))
    (partial,) = tmp_path.rglob("*.incomplete")
    size = (served.models["org/tiny"] / WEIGHTS).stat().st_size
    partial.write_bytes(b"x" * (size + 1))
    served.down = False
    assert download(served, tmp_path).returncode == 0
    assert served.transfers(WEIGHTS)[-1] is None


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_what_arrives_damaged_is_thrown_away(served: Hub, tmp_path: Path, name: str) -> None:
    served.damaged = {name}
    text = complaint(download(served, tmp_path))
    assert f"{name} arrived damaged" in text
    assert "fetch it again" in text
    assert not list(tmp_path.rglob("*.incomplete"))
    assert not (snapshot(tmp_path) / "config.json").exists()
    served.damaged = set()
    assert download(served, tmp_path).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that holds less than the weights."""
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)], capture_output=True
        ).returncode
    ):
        pytest.skip("only root can mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_r22_room_on_the_disk_is_looked_for_first(served: Hub, small_disk: Path) -> None:
    text = complaint(download(served, small_disk))
    assert "are to be fetched" in text
    assert "free some" in text
    assert not served.transfers(WEIGHTS)


def test_r22_a_disk_that_fills_up_is_said_and_the_rest_fetched_later(
    served: Hub, small_disk: Path, tmp_path: Path
) -> None:
    served.silent = True  # so that the size is not known beforehand
    assert "the disk is full" in complaint(download(served, small_disk))
    (partial,) = small_disk.rglob("*.incomplete")
    kept = partial.stat().st_size
    assert kept > 0
    assert not (snapshot(small_disk) / "config.json").exists()
    home = Path(shutil.copytree(small_disk, tmp_path / "larger", symlinks=True))
    assert download(served, home).returncode == 0
    assert served.transfers(WEIGHTS)[-1] == f"bytes={kept}-"


def test_r22_a_limit_on_files_is_a_full_disk_too(served: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rerank_grpc", "download", "org/tiny"]
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        env=environment(**variables(served, tmp_path)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)),
        timeout=60,
    )
    assert "the disk is full" in complaint(done)
    assert not (snapshot(tmp_path) / "config.json").exists()
    assert download(served, tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("org/nothing", "no such model"),
        ("org/tiny@gone", "no revision gone"),
        ("../tiny", "neither a hub id"),
        ("org/ti--ny", "neither a hub id"),
        ("org/tiny-", "neither a hub id"),
        ("https://example.com/org/tiny", "neither a hub id"),
        ("jinaai/jina-reranker-v1-turbo-en", "not supported: it needs code"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(served: Hub, tmp_path: Path, name: str, reason: str) -> None:
    assert reason in complaint(download(served, tmp_path, name))


def test_a_hub_that_is_not_there_is_said(served: Hub, tmp_path: Path) -> None:
    text = complaint(download(served, tmp_path, HF_ENDPOINT="http://127.0.0.1:9"))
    assert "check the network and HF_ENDPOINT" in text


def test_pickles_are_fetched_only_where_nothing_else_is_and_converted(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    old = Path(shutil.copytree(directories["bert"], tmp_path / "old"))
    torch.save(load_file(old / WEIGHTS), old / "pytorch_model.bin")
    (old / "modeling_evil.py").write_text("raise SystemExit('the code ran')")
    both = Path(shutil.copytree(old, tmp_path / "both"))
    (old / WEIGHTS).unlink()
    with hub.running(old=old, both=both) as served:
        assert download(served, tmp_path, "org/old", "org/both").returncode == 0
        assert len(served.transfers("pytorch_model.bin")) == 1
        assert not served.transfers("modeling_evil.py")
    assert (snapshot(tmp_path, "old") / WEIGHTS).is_file()
    assert load(snapshot(tmp_path, "old")).card.revision == COMMIT


def with_modules(directory: Path) -> Path:
    """Adds what sentence-transformers, ColBERT and others keep beside a network."""
    for name in (
        *("chat_template.jinja", "additional_chat_templates/reranker.jinja", "artifact.metadata"),
        *("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
        *("3_Dense/config.json", "3_Dense/pytorch_model.bin", "2_Dense/pytorch_model.bin"),
        *("README.md", "0_Transformer/model.safetensors", "onnx/model.safetensors", "2_Dense/evil.py"),
        *("openvino/config.json", "additional_chat_templates/evil.py", "2_Dense/onnx/config.json"),
    ):
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / name).write_bytes(b"[]" if name == "modules.json" else b"{}")
        if name.endswith(".bin"):
            torch.save({"linear.weight": torch.zeros(1, 2)}, directory / name)
    return directory


def fetched(root: Path, like: Path) -> set[str]:
    """Lists what a snapshot has more than a model without modules."""
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return names - {path.name for path in like.iterdir()}


MODULES = {
    *("chat_template.jinja", "additional_chat_templates/reranker.jinja", "artifact.metadata"),
    *("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
    "3_Dense/config.json",
}


def test_all_that_a_loader_reads_is_fetched_and_no_code(directories: dict[str, Path], tmp_path: Path) -> None:
    whole = with_modules(Path(shutil.copytree(directories["bert"], tmp_path / "whole")))
    pickle, made = "3_Dense/pytorch_model.bin", "3_Dense/model.safetensors"
    with hub.running(whole=whole) as served:
        assert download(served, tmp_path, "org/whole").returncode == 0
        assert fetched(snapshot(tmp_path, "whole"), directories["bert"]) == MODULES | {pickle, made}
        server = tmp_path / "server"
        code = "from rerank_grpc.checkpoints.hub import fetch; fetch('org/whole', 'main')"
        variables_ = environment(**variables(served, server))
        subprocess.run([sys.executable, "-c", code], env=variables_, check=True, timeout=60)
        assert fetched(snapshot(server, "whole"), directories["bert"]) == MODULES, "a server takes no pickle"


def test_weights_of_a_module_alone_make_no_model(directories: dict[str, Path], tmp_path: Path) -> None:
    lonely = with_modules(Path(shutil.copytree(directories["bert"], tmp_path / "lonely")))
    (lonely / WEIGHTS).unlink()
    with hub.running(lonely=lonely) as served:
        assert "only pickled weights" in complaint(download(served, tmp_path, "org/lonely"))


def test_a_model_of_an_earlier_download_is_completed(
    served: Hub, tmp_path: Path, directories: dict[str, Path]
) -> None:
    name = f"org/tiny@{COMMIT}"
    assert download(served, tmp_path, name).returncode == 0
    assert download(served, tmp_path, name, HF_HUB_OFFLINE="1").returncode == 0
    served.models["org/tiny"] = with_modules(Path(shutil.copytree(directories["bert"], tmp_path / "more")))
    assert download(served, tmp_path, name).returncode == 0
    assert len(served.transfers(WEIGHTS)) == 2, "the network's once, and a module's"
    assert (snapshot(tmp_path) / "chat_template.jinja").is_file()


def test_a_licence_that_forbids_commercial_use_is_said(served: Hub, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[[model]]\nid = "org/tiny"\nkind = "cross-encoder"\nfamily = "bert"\n')
    quiet = download(served, tmp_path, "tiny", RERANK_CATALOGUE=str(own))
    own.write_text(own.read_text() + 'licence = "CC-BY-NC-4.0"\n')
    said = download(served, tmp_path, "tiny", RERANK_CATALOGUE=str(own))
    assert (quiet.returncode, said.returncode) == (0, 0)
    assert "commercial" not in quiet.stderr
    assert "  org/tiny: its licence, CC-BY-NC-4.0, forbids commercial use\n" in said.stderr


def test_a_terminal_gets_a_bar_with_rate_and_time(served: Hub, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rerank_grpc", "download", "org/tiny"],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env=environment(**variables(served, tmp_path, TERM="xterm", COLUMNS="100")),
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # Linux's end of a terminal
            break
        if not part:
            break
        said += part
    assert process.wait(60) == 0
    os.close(ours)
    text = said.decode()
    assert re.search(r"model\.safetensors: +0%\|.*\[00:00<", text)
    assert re.search(r"model\.safetensors: 100%\|█+\| .*B/s\]\r?\n", text)


def test_a_cache_that_cannot_be_written_is_told_and_not_blamed_on_the_network(
    served: Hub, tmp_path: Path
) -> None:
    (tmp_path / "hub").write_text("")
    text = complaint(download(served, tmp_path))
    assert "cannot be written: " in text
    assert "name another place in HF_HOME" in text
    assert "network" not in text


def test_a_user_without_a_home_is_told_to_name_a_folder(served: Hub, tmp_path: Path) -> None:
    # As where HOME is not set and the user has no entry in passwd: `~` stands for nothing.
    done = download(served, tmp_path, HOME="~", HF_HUB_CACHE="~/hub")
    assert complaint(done).endswith("the user has no home folder to fetch it into: name a folder in HF_HOME")
    assert not Path("~").exists()


def test_a_refusal_names_the_host_and_neither_the_url_nor_the_token(served: Hub, tmp_path: Path) -> None:
    own = {"HF_ENDPOINT": "http://user:canary@127.0.0.1:9/canary", "HF_TOKEN": "hf_canary"}
    done = download(served, tmp_path, **own)
    assert "the hub at 127.0.0.1:9 did not give it" in complaint(done)
    assert "canary" not in done.stdout + done.stderr
