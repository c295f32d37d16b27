"""Chat templates as rerankers have them, others that none should have, and small tokenizers for them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tests import random_models

QUERY = '{{ (messages | selectattr("role", "eq", "query") | first).content }}'
DOCUMENT = '{{ (messages | selectattr("role", "eq", "document") | first).content }}'

SYSTEM = 'messages | selectattr("role", "eq", "system") | map(attribute="content") | first'
TASK = "Given a web search query, retrieve relevant passages that answer the query"
QWEN3_ROLES = f"""{{%- set instruct = {SYSTEM} | default("{TASK}", true) -%}}
<|im_start|>system
Judge whether the Document meets the requirements. Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{{{ instruct }}}}
<Query>: """
QWEN3_ROLES += QUERY + "\n<Document>: " + DOCUMENT
QWEN3_ROLES += "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n\n"

ZERANK = """{%- for message in messages %}
{%- if message.role == "query" %}{{ '<|im_start|>system\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == "document" %}{{ '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\n<|im_start|>user\n"
    "{% for m in messages if m['role'] == 'system' %}instruction: {{ m['content'] }}\n{% endfor %}"
    "query: " + QUERY + "\ndocument: " + DOCUMENT + "\nYou are a search relevance expert.\nRelevance:"
    "<|im_end|>\n<|im_start|>assistant\n"
)
DOCUMENT_FIRST = "{{ bos_token }}" + DOCUMENT + " [sep] " + QUERY + " ->\n"
STRIPPED = f"<|im_start|>q: {QUERY[:-3]} | trim }}}}\nd: {DOCUMENT}<|im_end|>"
STRUCTURED = (
    "<|im_start|>{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
PLAIN_TEXT = f"question:{QUERY} \n \n passage:{DOCUMENT}"
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
INST = f"{{{{ bos_token }}}}[INST] Query: {QUERY}\nDocument: {DOCUMENT} [/INST] Relevant:"
GEMMA_TURNS = (
    f"{{{{ bos_token }}}}<start_of_turn>user\nA: {QUERY}\nB: {DOCUMENT}<end_of_turn>\n<start_of_turn>model\n"
)

HONEST = {
    "qwen3": (QWEN3_ROLES, {}),
    "zerank": (ZERANK, {"add_generation_prompt": True}),
    "mxbai": (MXBAI, {}),
    "document first": (DOCUMENT_FIRST, {}),
    "stripped": (STRIPPED, {}),
    "structured": (STRUCTURED, {}),
    "plain text": (PLAIN_TEXT, {}),
}

PAIR = QUERY + DOCUMENT
LOOPS = "{% for a in range(9999) %}" * 3 + "{% set x = 1 %}" + "{% endfor %}" * 3
RECURSION = "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}"

HOSTILE = {
    "endless loops": (LOOPS, "takes more than 1 s to render"),
    "a large power": ("{{ (7 ** 9999999) % 3 }}" + QUERY + DOCUMENT, "takes more than 1 s to render"),
    "a huge text": ('{{ "x" * 10**12 }}', "takes more than 512 MiB to render"),
    "a long text": ('{{ "x" * 10**7 }}', "writes more than 1,048,576 characters"),
    "a huge range": ("{{ range(10**12) | list | length }}", "OverflowError"),
    "recursion": (RECURSION, "RecursionError"),
    "attributes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "format": ("{{ '{0.__class__.__init__}'.format('') }}", "drops the query"),
    "namespace": ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "SecurityError"),
    "an import": ("{% include '/etc/passwd' %}", "fails (TypeError"),
    "an exception": ("{{ raise_exception('Only user\nroles') }}", "raises 'Only user roles'"),
    "the date": ("{{ strftime_now('%d') }}" + PAIR, "depends on the date"),
    "bad syntax": ("{% if %}", "TemplateSyntaxError"),
    "dropped document": (QUERY, "drops the document"),
    "document twice": (QUERY + DOCUMENT + DOCUMENT, "writes the document 2 times"),
    "chance": (QUERY + DOCUMENT + "{{ range(9999) | random }}", "depends on chance"),
    "upper": (f"{QUERY}\n{DOCUMENT[:-3]} | upper }}}}", "changes the document ('word' comes out otherwise)"),
    "left strip": (f"{QUERY}\n{DOCUMENT[:-3]}.lstrip() }}}}", "changes the document"),
    "escape": (f"{QUERY[:-3]} | e }}}}\n{DOCUMENT}", "changes the query"),
    "words": (f"{QUERY}{{% for w in messages[1].content.split() %}}{{{{ w }}}} {{% endfor %}}", "changes"),
    "lines": (f"{QUERY}{{{{ messages[1].content.splitlines() | join('\n') }}}}", "changes"),
    "cut": (f"{QUERY}{{{{ messages[1].content[:90000] }}}}", "changes its texts"),
    "length": (
        f"{QUERY}{DOCUMENT}{{% if messages[1].content | length > 4321 %}} long{{% endif %}}",
        "changes",
    ),
    "empty": (f"{QUERY}{{% if messages[1].content %}}\n{DOCUMENT}{{% else %}}none{{% endif %}}", "changes"),
    "beginning": (
        f"{QUERY}{DOCUMENT}{{% if messages[1].content.startswith('Sec' ~ 'tion') %}}!{{% endif %}}"
        "{% if messages[1].content.startswith('Abstract') %}!{% endif %}",
        "changes its texts ('Abstract' comes out otherwise)",
    ),
    "many words": (
        PAIR + "{% if x in [" + str(list(range(2, 999, 3))) + "] %}{% endif %}",
        "knows more than 500",
    ),
    "half a surrogate": (QUERY + DOCUMENT + "{{ '\\ud800' }}", "UnicodeEncodeError"),
}


def write(directory: Path, template: str, tokenizer: Tokenizer | None = None, **names: Any) -> Path:
    """Writes a template and, by default, Qwen's tokenizer as AutoTokenizer reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"} | names
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer or qwen(), **names)
    fast.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(template, "utf-8")
    return directory


@functools.cache
def _qwen() -> str:
    return random_models.qwen_tokenizer().to_str()


def qwen() -> Tokenizer:
    return Tokenizer.from_str(_qwen())


@functools.cache
def _gemma() -> str:
    return random_models.gemma_tokenizer().to_str()


def gemma() -> Tokenizer:
    """Gemma's tokenizer, with its added tokens of white space."""
    tokenizer = Tokenizer.from_str(_gemma())
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("\n", "\n\n", "\n\n\n", "▁▁")])
    return tokenizer


def llama3() -> Tokenizer:
    """A tokenizer with Llama 3's steps."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = random_models.QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False))
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
    tokenizer.add_special_tokens([f"<|{name}|>" for name in names])
    return tokenizer


def llama2() -> Tokenizer:
    """A tokenizer with Llama 2's steps as its old files have them: ▁ before every piece."""
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def mistral() -> Tokenizer:
    """A tokenizer with the steps of Mistral and of Llama 2's newer files: ▁ before the first piece alone."""
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_special_tokens(["[INST]", "[/INST]"])
    return tokenizer


def _sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    _train(tokenizer, trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False))
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    data["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _train(tokenizer: Tokenizer, trainer: Any) -> None:
    tokenizer.train_from_iterator(random_models.texts()[:500], trainer)


SENTENCEPIECE_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA3_NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
GEMMA_NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
FAMILIES: dict[str, tuple[Callable[[], Tokenizer], dict[str, str], tuple[str, ...]]] = {
    "qwen": (qwen, {}, (QWEN3_ROLES, MXBAI, DOCUMENT_FIRST, PLAIN_TEXT, STRIPPED)),
    "gemma": (gemma, GEMMA_NAMES, (GEMMA_TURNS, PLAIN_TEXT)),
    "llama 3": (llama3, LLAMA3_NAMES, (LLAMA3, PLAIN_TEXT)),
    "llama 2": (llama2, SENTENCEPIECE_NAMES, (INST, LLAMA3, PLAIN_TEXT)),
    "mistral": (mistral, SENTENCEPIECE_NAMES, (INST, PLAIN_TEXT, DOCUMENT_FIRST)),
}
KINDS = [(family, source) for family, (_, _, sources) in FAMILIES.items() for source in sources]
