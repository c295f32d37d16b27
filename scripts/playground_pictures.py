"""Takes the pictures of the playground that the documents show, from a server of its own.

``python -m scripts.playground_pictures`` writes docs/images/playground.png, two models on a desktop,
and docs/images/playground-phone.png, one on a phone in the dark. The second model scores by late
interaction with the embedded model's weights, so that nothing is downloaded. Needs Chromium, playwright
and Pillow, which makes the files small.
"""

from __future__ import annotations

import json
import shutil
import string
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import save_file

from rerank_grpc.checkpoints.lookup import find_package
from tests.command import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = Path(__file__).resolve().parent.parent / "docs/images"
NAME = "minilm-maxsim"
HIDDEN = 384
COLOURS = 128  # of the pictures' palette
MODULES = (("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense"))
DENSE = {
    "in_features": HIDDEN,
    "out_features": HIDDEN,
    "bias": False,
    "activation_function": "torch.nn.modules.linear.Identity",
}
LATE = {
    "model_type": "ColBERT",
    "prompts": {},
    "similarity_fn_name": "MaxSim",
    "query_prefix": "",
    "document_prefix": "",
    "query_length": 32,
    "document_length": 255,
    "attend_to_expansion_tokens": False,
    "skiplist_words": list(string.punctuation),
}


def write_late_model(path: Path) -> Path:
    """Writes a model in PyLate's form: the embedded one and a projection that changes nothing."""
    package = find_package()
    assert package is not None
    shutil.copytree(package, path)
    modules = [{"idx": n, "name": str(n), "path": p, "type": t} for n, (p, t) in enumerate(MODULES)]
    _write(path / "modules.json", modules)
    _write(path / "1_Dense/config.json", DENSE)
    save_file({"linear.weight": torch.eye(HIDDEN)}, path / "1_Dense/model.safetensors", {"format": "pt"})
    _write(path / "sentence_bert_config.json", {"max_seq_length": 255, "do_lower_case": False})
    _write(path / "config_sentence_transformers.json", LATE)
    return path


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def take(browser: Browser, url: str, name: str, width: int, height: int, other: str, **look: Any) -> None:
    """Takes a picture of the page once an example is ranked; of the results alone on a narrow screen."""
    page = browser.new_page(viewport={"width": width, "height": height}, **look)
    page.goto(f"{url}/playground")
    page.wait_for_selector("#models li")
    if other:
        page.locator("#other").select_option(other)
    page.locator("#rerank").click()
    page.wait_for_selector("#stop", state="hidden", timeout=60_000)
    page.locator("#threshold").fill("0.6" if other else "0.7")
    page.mouse.move(0, 0)
    if width < 600:
        page.locator("#board").evaluate("board => board.scrollIntoView()")
    target = IMAGES / name
    page.screenshot(path=target, animations="disabled")
    page.close()
    with Image.open(target) as picture:
        picture.convert("RGB").quantize(COLOURS).save(target, optimize=True)
    print(f"{target.name}: {target.stat().st_size:,} bytes")


def main() -> None:
    """Serves two models, and takes both pictures."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        late = write_late_model(Path(folder) / NAME)
        models = ("--model", "embedded", "--model", str(late))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with served(*models, "--rest-port", "0", "--max-batch-tokens", "1024") as server:
            url = server.url.rstrip("/")
            take(browser, url, "playground.png", 1400, 1010, NAME)
            take(browser, url, "playground-phone.png", 390, 844, "", color_scheme="dark")
        browser.close()


if __name__ == "__main__":
    main()
