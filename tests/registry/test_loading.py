"""The making of a model: what is said of it when it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.registry.loading import ModelLoader

OWN = '[[model]]\nid = "acme/tiny"\nkind = "cross-encoder"\nfamily = "bert"\nlicence = "{}"\n'


@pytest.mark.parametrize("licence", ["CC-BY-NC-4.0", "Apache-2.0"])
def test_a_licence_that_forbids_commercial_use_is_one_warning(
    directories: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, licence: str
) -> None:
    (tmp_path / "tiny").symlink_to(directories["bert"])
    own = tmp_path / "own.toml"
    own.write_text(OWN.format(licence))
    loader = ModelLoader(ServerSettings(device="cpu", models_dir=tmp_path, catalogue=own))
    loader.load(ModelSpec("mine", "acme/tiny"), lambda *_: None).engine.close()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    warning = "model mine is acme/tiny: its licence, CC-BY-NC-4.0, forbids commercial use"
    assert said == ([warning] if "NC" in licence else [])
