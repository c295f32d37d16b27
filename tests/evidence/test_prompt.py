"""A catalogue's prompt is read as it is written, and a mistake in it is named."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import pytest

from rerank_grpc.checkpoints.catalogue import builtin
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.evidence.pasting import filled
from rerank_grpc.evidence.prompt import Placeholder, Prompt, parse_answers, parse_prompt
from rerank_grpc.evidence.template import TemplateSettings, read_template
from tests.evidence import templates
from tests.prompts import PREFIX, SUFFIX, TASK
from tests.random_models import GEMMA_NAME, QWEN3_NAME

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


QUESTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
    "providing a prediction of either 'Yes' or 'No'."
)
# As the models' own code writes them.
CARDS = [
    (QWEN3_NAME, [PREFIX, f"<Instruct>: {TASK}\n<Query>: a {{q}}\n<Document>:  d\n", SUFFIX], ("yes", "no")),
    (GEMMA_NAME, ["<bos>", "A: a {q}", "\n", "B:  d\n", "\n", QUESTION], ("Yes",)),
]


@pytest.mark.parametrize(("name", "expected", "answers"), CARDS)
def test_the_catalogues_prompts_are_those_of_the_models_own_code(name, expected, answers):
    known = builtin().find(name)
    assert known is not None
    prompt = parse(dict(known.prompt))
    filling = {
        Placeholder.QUERY: "a {q}",
        Placeholder.DOCUMENT: " d\n",
        Placeholder.INSTRUCTION: prompt.instruction,
    }
    assert [filled(segment, filling) for segment in prompt.chosen("")] == expected
    assert parse_answers(known.prompt, "") == answers


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
