"""The files by which sentence-transformers reads a cross-encoder with a prompt, as their contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from rerank_grpc.errors import ConfigurationError

# The text of a file, or what it holds as JSON, by its path in the checkpoint.
Files: TypeAlias = dict[str, Any]

TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
DENSE = "sentence_transformers.base.modules.dense.Dense"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
TEMPLATE_FILE = "chat_template.jinja"
DENSE_FOLDER = "2_Dense"


@dataclass(frozen=True, slots=True)
class Template:
    """The prompt of a family of rerankers, as the chat template of its messages."""

    family: str  # transformers' model_type
    text: str
    instruction: str  # the default system message


_QWEN3_TASK = "Given a web search query, retrieve relevant passages that answer the query"
# The prompt of the model card, https://huggingface.co/Qwen/Qwen3-Reranker-0.6B.
QWEN3 = Template(
    family="qwen3",
    text=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        '<Instruct>: {{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first '
        f'| default("{_QWEN3_TASK}") }}}}\n'
        '<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n'
        '<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}'
        '<|im_end|>\n<|im_start|>assistant\n{{ "<think>\\n\\n</think>\\n\\n" }}'
    ),
    instruction=_QWEN3_TASK,
)
# By the beginning of a model's short name.
TEMPLATES: Mapping[str, Template] = {"Qwen3-Reranker": QWEN3}


def find_template(name: str) -> Template:
    """Finds the prompt of a model by its hub id or short name, in any case; raises ConfigurationError."""
    short = name.rpartition("/")[2].lower()
    for beginning, template in TEMPLATES.items():
        if short.startswith(beginning.lower()):
            return template
    known = ", ".join(f"{beginning}-…" for beginning in TEMPLATES)
    raise ConfigurationError(f"--prompt: no prompt of {name!r} is known: name one of {known}")


def classifier_files(template: Template) -> Files:
    """The files of a classifier that reads query and document in a prompt."""
    files = _files("sequence-classification", "logits", "scores", template.text)
    files["config_sentence_transformers.json"] |= {
        "prompts": {"query": template.instruction},
        "default_prompt_name": "query",
    }
    return files


def pooled_files(template: str, hidden_size: int) -> Files:
    """The files of a body whose mean row, of `hidden_size` numbers, a score row weighs."""
    files = _files("feature-extraction", "last_hidden_state", "token_embeddings", template)
    files["modules.json"] += [_module(1, "1_Pooling", POOLING), _module(2, DENSE_FOLDER, DENSE)]
    files["1_Pooling/config.json"] = {
        "embedding_dimension": hidden_size,
        "pooling_mode": "mean",
        "include_prompt": True,
    }
    files[f"{DENSE_FOLDER}/config.json"] = {
        "in_features": hidden_size,
        "out_features": 1,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
        "module_input_name": "sentence_embedding",
        "module_output_name": "scores",
    }
    return files


def _files(task: str, output: str, name: str, template: str) -> Files:
    reads = {"method": "forward", "method_output_name": output}
    return {
        "modules.json": [_module(0, "", TRANSFORMER)],
        "sentence_bert_config.json": {
            "transformer_task": task,
            "modality_config": {"text": reads, "message": reads | {"format": "flat"}},
            "module_output_name": name,
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": SIGMOID,
            "prompts": {},
            "default_prompt_name": None,
        },
        TEMPLATE_FILE: template,
    }


def _module(place: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": place, "name": str(place), "path": path, "type": kind}
