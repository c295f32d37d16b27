"""Language models that answer with a token, of many families, and those turned into classifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from tokenizers import Tokenizer, processors

from tests.models.kinds import templates, tokenizers
from tests.models.kinds.chains import NORMALIZE, bi_encoder, chained, pooling, scores
from tests.models.kinds.files import Part, save_cross_encoder, save_modules, save_settings
from tests.models.kinds.kind import Kind, Pass
from tests.models.kinds.late import native
from tests.models.kinds.networks import write_network, write_tokenizer
from tests.models.kinds.templates import save_template
from tests.random_models import DECODER_SHAPE, PROMPT_TOKENS

WINDOW = 48  # of the layers that slide: less than the sequences
DEFAULT = {"query": templates.INSTRUCTION}
SHAPE = {name: value for name, value in DECODER_SHAPE.items() if name != "head_dim"}
PADDED_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]


class Family(NamedTuple):
    """A network, and the tokenizer and template that its rerankers have."""

    architecture: str
    config: str
    changes: dict[str, Any]
    tokenizer: Callable[[], Tokenizer] = tokenizers.qwen
    template: str = templates.QWEN3


QWEN3 = Family("Qwen3ForCausalLM", "Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16})
QWEN2 = Family("Qwen2ForCausalLM", "Qwen2Config", {"num_key_value_heads": 2}, template=templates.MXBAI)
LLAMA = Family(
    "LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 2}, tokenizers.llama, templates.LLAMA
)
MISTRAL = Family(
    "MistralForCausalLM",
    "MistralConfig",
    {"num_key_value_heads": 2, "sliding_window": WINDOW, "head_dim": 16},
)


def _gemma(name: str, config: str, **changes: Any) -> Family:
    own = {"head_dim": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    return Family(name, config, own | changes, tokenizers.gemma, templates.GEMMA)


GEMMA = _gemma("GemmaForCausalLM", "GemmaConfig", num_key_value_heads=1)
GEMMA2 = _gemma(
    "Gemma2ForCausalLM",
    "Gemma2Config",
    num_key_value_heads=2,
    query_pre_attn_scalar=16,
    sliding_window=WINDOW,
    final_logit_softcapping=3.0,
    attn_logit_softcapping=3.0,
)
GEMMA3 = _gemma(
    "Gemma3ForCausalLM",
    "Gemma3TextConfig",
    num_key_value_heads=1,
    query_pre_attn_scalar=16,
    sliding_window=WINDOW,
    layer_types=SLIDING,
)
OTHERS: dict[str, tuple[Family, Pass]] = {
    "phi-3": (Family("Phi3ForCausalLM", "Phi3Config", PADDED_IDS | {"num_key_value_heads": 2}), "packed"),
    "smollm3": (
        Family(
            "SmolLM3ForCausalLM",
            "SmolLM3Config",
            PADDED_IDS | {"num_key_value_heads": 2, "no_rope_layers": [1, 0, 1]},
        ),
        "packed",
    ),
    "olmo-2": (Family("Olmo2ForCausalLM", "Olmo2Config", PADDED_IDS | {"num_key_value_heads": 2}), "packed"),
    "qwen3-moe": (
        Family(
            "Qwen3MoeForCausalLM",
            "Qwen3MoeConfig",
            {
                "num_key_value_heads": 2,
                "head_dim": 16,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
            },
        ),
        "packed",
    ),
    "granite": (
        Family(
            "GraniteForCausalLM",
            "GraniteConfig",
            PADDED_IDS | {"num_key_value_heads": 2, "logits_scaling": 3.0, "attention_multiplier": 0.25},
        ),
        "any",
    ),
    "cohere": (
        Family(
            "CohereForCausalLM", "CohereConfig", PADDED_IDS | {"num_key_value_heads": 2, "logit_scale": 0.7}
        ),
        "any",
    ),
    "gpt-oss": (
        Family(
            "GptOssForCausalLM",
            "GptOssConfig",
            PADDED_IDS
            | {
                "num_key_value_heads": 2,
                "head_dim": 16,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "sliding_window": WINDOW,
                "layer_types": SLIDING,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        ),
        "padded",
    ),
    # Attention that takes no arguments of a pass, and keys wider than values.
    "stablelm": (
        Family("StableLmForCausalLM", "StableLmConfig", PADDED_IDS | {"num_key_value_heads": 2}),
        "padded",
    ),
    "minicpm3": (
        Family("MiniCPM3ForCausalLM", "MiniCPM3Config", PADDED_IDS | {"num_key_value_heads": 4}),
        "padded",
    ),
    "mistral": (MISTRAL, "packed"),
    "qwen2-sliding": (
        Family(
            "Qwen2ForCausalLM",
            "Qwen2Config",
            {
                "num_key_value_heads": 2,
                "use_sliding_window": True,
                "sliding_window": WINDOW,
                "max_window_layers": 1,
            },
        ),
        "packed",
    ),
}
_NAMES = {
    tokenizers.qwen: tokenizers.QWEN_NAMES,
    tokenizers.llama: tokenizers.LLAMA_NAMES,
    tokenizers.gemma: tokenizers.GEMMA_NAMES,
}


def write_decoder(path: Path, family: Family, **changes: Any) -> Path:
    """Writes a language model with its tokenizer and its template, as a chat model has them."""
    config = getattr(transformers, family.config)(**SHAPE | family.changes | changes)
    write_network(getattr(transformers, family.architecture), config, path)
    write_tokenizer(
        family.tokenizer(), path, _NAMES[family.tokenizer], model_max_length=config.max_position_embeddings
    )
    return save_template(path, family.template)


def answers(tokenizer: Tokenizer, true: str, false: str | None) -> Part:
    """The module that reads one token's logit, or how much it exceeds that of another."""
    config = {
        "true_token_id": tokenizer.token_to_id(true),
        "false_token_id": None if false is None else tokenizer.token_to_id(false),
        "module_input_name": "causal_logits",
    }
    return Part("LogitScore", config)


def reranker(
    path: Path,
    family: Family = QWEN3,
    true: str = "yes",
    false: str | None = "no",
    *,
    message: str = "flat",
    prompts: dict[str, str] | None = None,
    default: str | None = None,
    changes: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Writes a language model that CrossEncoder.save_pretrained saved, with LogitScore behind it."""
    write_decoder(path, family, **changes or {})
    part = answers(family.tokenizer(), true, false)
    return save_cross_encoder(
        path, "text-generation", [part], message=message, prompts=prompts, default=default, **settings
    )


def qwen3_reranker(path: Path) -> Path:
    return reranker(path, prompts=DEFAULT, default="query")


def own_instruction(path: Path) -> Path:
    return reranker(path, prompts={"query": templates.OWN_INSTRUCTION}, default="query")


def zerank_2(path: Path) -> Path:
    family = QWEN3._replace(template=templates.ZERANK)
    return reranker(
        path, family, "Y", None, processing_kwargs={"chat_template": {"add_generation_prompt": True}}
    )


def mxbai_v2(path: Path) -> Path:
    return reranker(path, QWEN2, "1", "0")


def ctxl_v2(path: Path) -> Path:
    return reranker(path, QWEN3._replace(template=templates.CTXL), "!", None)


def trimmed(path: Path) -> Path:
    return reranker(path, QWEN3._replace(template=templates.TRIMMED), prompts=DEFAULT, default="query")


def structured(path: Path) -> Path:
    return reranker(path, QWEN3._replace(template=templates.STRUCTURED), message="structured")


def text_mode(path: Path) -> Path:
    """Asks with both texts and nothing around them, though a chat template lies beside."""
    return reranker(path, message="", prompts={"query": "search: "}, default="query")


def with_max_length(path: Path) -> Path:
    return reranker(path, prompts=DEFAULT, default="query", max_seq_length=PROMPT_TOKENS // 2)


def own_head(path: Path) -> Path:
    return reranker(path, prompts=DEFAULT, default="query", changes={"tie_word_embeddings": False})


def classifier(path: Path) -> Path:
    """Writes a Qwen3 whose answers' rows became a head, with its template and nothing else."""
    family = QWEN3._replace(architecture="Qwen3ForSequenceClassification")
    pad = family.tokenizer().token_to_id("<|endoftext|>")
    return write_decoder(path, family, num_labels=1, pad_token_id=pad)


def saved_classifier(path: Path) -> Path:
    classifier(path)
    return save_cross_encoder(
        path,
        "sequence-classification",
        message="flat",
        activation="Sigmoid",
        prompts=DEFAULT,
        default="query",
    )


def classifier_of_pairs(path: Path) -> Path:
    """Writes one that was trained on plain pairs, as its modality says."""
    (classifier(path) / "chat_template.jinja").unlink()
    return save_cross_encoder(path, "sequence-classification", activation="Sigmoid")


def body(path: Path) -> Path:
    """Writes a Qwen3 without a head, whose texts have an end."""
    write_decoder(path, QWEN3._replace(architecture="Qwen3Model"))
    (path / "chat_template.jinja").unlink()
    return _with_ends(path)


def _of(family: Family, true: str = "yes", false: str | None = "no") -> Callable[[Path], Path]:
    return lambda path: reranker(path, family, true, false)


def embedding_model(path: Path) -> Path:
    """Writes a Qwen3-Embedding: a language model with a bi-encoder's modules, whose texts have an end."""
    return _with_ends(open_ended_embedding_model(path))


def _with_ends(path: Path) -> Path:
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    end = "<|endoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def open_ended_embedding_model(path: Path) -> Path:
    """Writes the same with a tokenizer that puts nothing behind a text."""
    write_decoder(path, QWEN3)
    save_modules(path, pooling("lasttoken"), Part("Normalize", {}), old=True)
    prompts = {"query": "Instruct: Find passages\nQuery:", "document": ""}
    return save_settings(path, "SentenceTransformer", prompts=prompts, similarity_fn_name="cosine")


DECODERS = (
    Kind("qwen3-embedding", embedding_model, "sentence-transformer", served="packed"),
    Kind("qwen3-reranker", qwen3_reranker, served="packed", instructed=True),
    Kind("qwen3-own-instruction", own_instruction, served="packed", instructed=True),
    Kind("qwen3-own-head", own_head, served="packed", instructed=True),
    Kind("qwen3-max-seq-length", with_max_length, served="packed", instructed=True),
    Kind("zerank-2", zerank_2, served="packed"),
    Kind("mxbai-v2", mxbai_v2, served="packed", instructed=True),
    Kind("ctxl-v2", ctxl_v2, instructed=True, cuts=False),
    Kind("template-trims", trimmed, instructed=True),
    Kind("template-structured", structured, instructed=True),
    Kind("decoder-text-mode", text_mode),
    Kind("llama", _of(LLAMA), served="packed", instructed=True),
    Kind("gemma", _of(GEMMA, "Yes", None), served="packed", instructed=True),
    Kind("gemma-2", _of(GEMMA2, "Yes", None), instructed=True),
    Kind("gemma-3", _of(GEMMA3, "Yes", None), served="packed", instructed=True),
    *(Kind(name, _of(family), served=served, instructed=True) for name, (family, served) in OTHERS.items()),
    Kind("qwen3-classifier", classifier, instructed=True),
    Kind("qwen3-classifier-saved", saved_classifier, instructed=True),
    Kind("qwen3-classifier-of-pairs", classifier_of_pairs, served="packed"),
    *(
        Kind(f"qwen3-{mode}-dense", chained(body, pooling(mode), scores()), served="packed")
        for mode in ("mean", "lasttoken")
    ),
    Kind(
        "qwen3-bi-encoder-mean",
        lambda path: bi_encoder(path, pooling("mean"), NORMALIZE, body=body),
        "sentence-transformer",
        served="packed",
    ),
    Kind("colbert-native-decoder", native(body), "multi-vector", served="packed"),
)
