"""A catalogue's prompt is read as it is written, and a mistake in it is named."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import pytest

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.evidence.pasting import filled
from rerank_grpc.evidence.prompt import Placeholder, Prompt, parse_answers, parse_prompt
from rerank_grpc.evidence.template import TemplateSettings, read_template
from rerank_grpc.models import prompts
from tests.evidence import templates

QWEN3 = r"""
segments = [
  "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n",
  "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
  "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
]
instruction = "Given a web search query, retrieve relevant passages that answer the query"
answers = ["yes", "no"]
"""  # noqa: E501 - as it stands in the catalogue
GEMMA = r"""
segments = [
  "<bos>", "A: {query}", "\n", "B: {document}", "\n",
  "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a prediction of either 'Yes' or 'No'.",
]
answers = ["Yes"]
"""  # noqa: E501
ZERANK = r"""
segments = [
  "<|im_start|>", "system\n{query}", "<|im_end|>\n<|im_start|>", "user\n{document}",
  "<|im_end|>\n<|im_start|>assistant\n",
]
strips = ["query", "document"]
answers = ["Yes"]
"""


def parse(table: dict[str, Any]) -> Prompt:
    return parse_prompt(table, "catalogue.toml: model 'a/b'", "catalogue.toml")


@pytest.mark.parametrize(("text", "before"), [(QWEN3, prompts.QWEN3), (GEMMA, prompts.GEMMA)])
def test_the_prompts_of_the_cards_are_the_same_segments_as_before(text, before):
    table = tomllib.loads(text)
    filling = {
        Placeholder.QUERY: "a {q}",
        Placeholder.DOCUMENT: " d\n",
        Placeholder.INSTRUCTION: before.instruction,
    }
    last = before.filled("a {q}", "")[-1] + before.lead + " d\n"
    expected = [*before.system, *before.filled("a {q}", "")[:-1], last, *before.suffix]
    assert [filled(segment, filling) for segment in parse(table).chosen("")] == expected
    assert parse(table).instruction == before.instruction
    assert parse_answers(table, "") == before.answers


def test_a_catalogues_prompt_is_the_one_that_a_template_gives(tmp_path):
    source = templates.ZERANK.replace("message.content", "(message.content | trim)")
    settings = TemplateSettings(kwargs={"add_generation_prompt": True})
    read = read_template(templates.write(tmp_path, source), settings=settings)
    assert replace(read, source="catalogue.toml") == parse(tomllib.loads(ZERANK))


def test_slots_are_named_in_braces_and_braces_are_doubled():
    prompt = parse({"segments": ["{{}} {query}{document}", "{{document}}"]})
    assert prompt == Prompt(
        (("{} ", Placeholder.QUERY, Placeholder.DOCUMENT), ("{document}",)), "catalogue.toml"
    )


def test_texts_that_are_stripped_are_named():
    prompt = parse({"segments": ["{query}", "{document}"], "strips": ["document"]})
    assert prompt.strips == {Placeholder.DOCUMENT}


def test_a_prompt_with_an_instruction_is_never_read_without_one():
    prompt = parse({"segments": ["{instruction}{query}{document}"], "instruction": "Judge."})
    assert prompt.segments == ()
    assert (
        prompt.chosen("")
        == prompt.chosen("other")
        == ((Placeholder.INSTRUCTION, Placeholder.QUERY, Placeholder.DOCUMENT),)
    )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "prompt.segments is not a list of texts"),
        ({"segments": []}, "prompt.segments is not a list of texts"),
        ({"segments": "{query}{document}"}, "prompt.segments is not a list of texts"),
        ({"segments": ["{query}{document}", ""]}, "prompt.segments is not a list of texts"),
        ({"segments": ["{query}"]}, "prompt.segments: {document} stands 0 times instead of once"),
        ({"segments": ["{query}{document}", "{query}"]}, "{query} stands 2 times"),
        (
            {"segments": ["{query}{document}{instruction}{instruction}"], "instruction": "x"},
            "{instruction} stands 2",
        ),
        (
            {"segments": ["{query}", "{doc}"]},
            "prompt.segments[1]: braces stand around {instruction}, {query}",
        ),
        ({"segments": ["{query!r}{document}"]}, "prompt.segments[0]: braces"),
        ({"segments": ["{query:>3}{document}"]}, "prompt.segments[0]: braces"),
        ({"segments": ["{query}{document}}"]}, "prompt.segments[0]: braces"),
        ({"segments": ["{}{query}{document}"]}, "prompt.segments[0]: braces"),
        ({"segments": ["{query}{document}"], "instruction": 7}, "prompt.instruction is not a text"),
        ({"segments": ["{query}{document}"], "instruction": "x"}, "need each other"),
        ({"segments": ["{query}{document}{instruction}"]}, "need each other"),
        ({"segments": ["{query}{document}"], "strips": ["text"]}, "prompt.strips names another text than"),
        ({"segments": ["{query}{document}"], "strips": "query"}, "prompt.strips is not a list of texts"),
        ({"segments": ["{query}{document}"], "system": "x"}, "unknown key prompt.system"),
    ],
)
def test_a_mistake_in_a_prompt_is_named_by_its_key(table, said):
    with pytest.raises(ConfigurationError) as raised:
        parse(table)
    assert said in str(raised.value)
    assert str(raised.value).startswith("catalogue.toml: model 'a/b': ")


@pytest.mark.parametrize("answers", [None, [], "yes", ["yes", ""], [1], ["a", "b", "c"]])
def test_answers_are_one_word_or_two(answers):
    with pytest.raises(ConfigurationError, match=r"catalogue.toml: prompt.answers"):
        parse_answers({"answers": answers}, "catalogue.toml")
