"""A catalogue of tiny shapes, and candidates out of it."""

from __future__ import annotations

from pathlib import Path

from rerank_grpc.checkpoints.catalogue import read_catalogue
from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.recommend.candidates import ModelCandidate

ENCODER = "num_hidden_layers = 2, hidden_size = 64, num_attention_heads = 4, intermediate_size = 128"
DECODER = f"{ENCODER}, num_key_value_heads = 2, head_dim = 16, max_position_embeddings = 512"
SOURCE = 'source = "https://example.org/table"'


def entry(
    name: str, family: str, shape: str, *, kind: str = "cross-encoder", more: str = "", vocabulary: int = 5000
) -> str:
    return f"""
[[model]]
id = "acme/{name}"
kind = "{kind}"
family = "{family}"
max_tokens = 512
parameters = 1
shape = {{ {shape}, vocab_size = {vocabulary} }}
{more}
"""


ENTRIES = {
    "tiny-bert": entry(
        "tiny-bert",
        "bert",
        ENCODER,
        more=f"""licence = "MIT"
languages = ["en"]
quality = [{{ benchmark = "B", value = 50, languages = ["en"], {SOURCE} }}]""",
    ),
    "tiny-twin": entry(
        "tiny-twin", "bert", ENCODER, vocabulary=50_000, more='licence = "CC-BY-NC-4.0"\nlanguages = ["zh"]'
    ),
    "tiny-broken": entry("tiny-broken", "bert", ENCODER.replace("64", "63")),
    "tiny-text": entry("tiny-text", "bert", ENCODER.replace("64", '"many"')),
    "tiny-large": entry(
        "tiny-large", "bert", ENCODER.replace("layers = 2", "layers = 200").replace("64", "8192")
    ),
    "tiny-modern": entry("tiny-modern", "modernbert", ENCODER),
    "tiny-deberta": entry(
        "tiny-deberta",
        "deberta-v2",
        f'{ENCODER}, position_buckets = 32, relative_attention = true, norm_rel_ebd = "layer_norm", '
        'share_att_key = true, position_biased_input = false, pos_att_type = ["p2c", "c2p"]',
        more='served = "padded"',
    ),
    **{
        f"tiny-{family}": entry(f"tiny-{family}", family, ENCODER, more='served = "padded"')
        for family in ("electra", "gte", "mpnet")
    },
    "tiny-qwen": entry("tiny-qwen", "qwen3", DECODER),
    "tiny-vectors": entry("tiny-vectors", "bert", ENCODER, kind="bi-encoder"),
    "tiny-late": entry("tiny-late", "bert", ENCODER, kind="late interaction"),
}


def write_catalogue(folder: Path, *names: str) -> Path:
    path = folder / "own.toml"
    path.write_text("".join(ENTRIES[name] for name in names or ENTRIES))
    return path


def settings_with(catalogue: Path) -> ServerSettings:
    # A configured budget is not measured, which saves seconds.
    return ServerSettings(catalogue=catalogue, device="cpu", engine=EngineSettings(max_batch_tokens=1024))


def candidate(catalogue: Path, name: str) -> ModelCandidate:
    known = read_catalogue(catalogue).find(name)
    assert known is not None
    return ModelCandidate(name, known)
