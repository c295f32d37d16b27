"""Chat templates of rerankers, as their checkpoints have them, and some that are programs."""

from __future__ import annotations

from pathlib import Path

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
OWN_INSTRUCTION = "Rate how much the passage helps somebody who writes a program"
OTHER_INSTRUCTION = "Judge whether the passage explains the function that is asked for"

_ROLES = """\
{%- set ns = namespace(system='', query='', document='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{%- set ns.system = message['content'] -%}
{%- elif message['role'] == 'query' -%}{%- set ns.query = message['content'] -%}
{%- elif message['role'] == 'document' -%}{%- set ns.document = message['content'] -%}
{%- endif -%}
{%- endfor -%}
"""

# The prompt of Qwen3-Reranker's model card.
QWEN3 = (
    _ROLES
    + """\
{{- '<|im_start|>system\\nJudge whether the Document meets the requirements based on the Query and the \
Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\\n\
<|im_start|>user\\n<Instruct>: ' \
+ (ns.system or '"""
    + INSTRUCTION
    + """') + '\\n<Query>: ' + ns.query + '\\n<Document>: ' + ns.document \
+ '<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' -}}
"""
)
# Pastes all messages by their roles: system is the query, user the document.
ZERANK = """\
{%- for message in messages -%}
{%- if message['role'] == 'query' -%}{{- '<|im_start|>system\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- elif message['role'] == 'document' -%}{{- '<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
MXBAI = (
    _ROLES
    + """\
{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n\
<|im_start|>user\\n' -}}
{%- if ns.system -%}{{- 'instruction: ' + ns.system + '\\n' -}}{%- endif -%}
{{- 'query: ' + ns.query + '\\ndocument: ' + ns.document + '\\nYou are a search relevance expert who \
evaluates how well documents match search queries.\\nRelevance:<|im_end|>\\n<|im_start|>assistant\\n' -}}
"""
)
CTXL = (
    _ROLES
    + """\
{{- 'Check whether a given document contains information helpful to answer the query.\\n<Document> ' \
+ ns.document + '\\n<Query> ' + ns.query + (' ' + ns.system if ns.system else '') + ' ??' -}}
"""
)
LLAMA = (
    _ROLES
    + """\
{{- '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\n' -}}
{%- if ns.system -%}{{- ns.system + '\\n\\n' -}}{%- endif -%}
{{- 'Query: ' + ns.query + '\\nPassage: ' + ns.document + '<|eot_id|><|start_header_id|>assistant\
<|end_header_id|>\\n\\n' -}}
"""
)
GEMMA = (
    _ROLES
    + """\
{{- '<bos><start_of_turn>user\\n' -}}
{%- if ns.system -%}{{- ns.system + '\\n' -}}{%- endif -%}
{{- 'Query: ' + ns.query + '\\nPassage: ' + ns.document + '<end_of_turn>\\n<start_of_turn>model\\n' -}}
"""
)
TRIMMED = QWEN3.replace("+ ns.query", "+ ns.query | trim").replace("+ ns.document", "+ ns.document | trim")
STRUCTURED = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' -}}
"""
ENCODER = (
    "{%- for message in messages -%}"
    "{{- '[CLS] ' + message['role'] + ' : ' + message['content'] + ' [SEP]' -}}{%- endfor -%}"
)

REVERSED_WORDS = ZERANK.replace(
    "message['content'] + '<|im_end|>", "(message['content'].split() | reverse | join(' ')) + '<|im_end|>"
)
DATED = "{{- strftime_now('%Y-%m-%d %H:%M:%S.%f') -}}" + ZERANK
HUGE = (
    ZERANK
    + "{%- for line in range(90000) -%}{{- 'a line of a template that does not end, ' * 9 -}}{%- endfor -%}"
)
ENDLESS = (
    ZERANK
    + "{%- for one in range(99999) -%}{%- for two in range(99999) -%}{%- for three in range(99999) -%}"
    + "{%- endfor -%}{%- endfor -%}{%- endfor -%}"
)
RAISES = """\
{%- for message in messages -%}
{%- if message['role'] not in ('system', 'user') -%}{{- raise_exception('Unknown role') -}}{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
"""
WITHOUT_DOCUMENT = ZERANK.replace("== 'document'", "== 'passage'")
TWICE = ZERANK.replace(
    "'<|im_start|>user\\n' + message['content']", "message['content'] + '\\n' + message['content']"
)


def save_template(path: Path, template: str) -> Path:
    """Writes chat_template.jinja into a checkpoint, which it returns."""
    (path / "chat_template.jinja").write_text(template)
    return path
