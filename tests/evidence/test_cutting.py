"""Control tokens are found as the tokenizer finds them, and texts behind others get no ▁ of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence import cutting
from rerank_grpc.evidence.cutting import (
    answer_ids,
    check_control_tokens,
    control_tokens,
    cut,
    inner_tokenizer,
    original_tokenizer,
    prove_tokens,
)
from rerank_grpc.evidence.prompt import Placeholder, Prompt
from tests.evidence import templates

Q, D = Placeholder.QUERY, Placeholder.DOCUMENT
FILE = Path("tokenizer.json")


def test_tokens_that_are_not_marked_as_special_are_control_tokens_where_they_stand():
    tokenizer = templates.qwen()
    assert control_tokens(["<think>\n", "a<|im_end|>"], tokenizer) == ["<|im_end|>", "<think>"]
    assert control_tokens(["<|im_", "end|>"], tokenizer) == []


def test_white_space_is_no_control_token():
    assert control_tokens(["a\n\n<bos>"], templates.gemma()) == ["<bos>"]


def test_the_longest_control_token_is_found_as_the_tokenizer_finds_it():
    tokenizer = templates.qwen()
    tokenizer.add_special_tokens(["<|im_end|>\n<|im"])
    segments = cut(("<|im_end|>\n<|im", Q, "_end|>", D), tokenizer)
    assert segments == (("<|im_end|>\n<|im",), (Q, "_end|>", D))
    prove_tokens(Prompt(segments, "test"), tokenizer, FILE)


def test_texts_between_control_tokens_are_one_segment_with_its_slots():
    text = ("a<|im_start|>b", Q, "c<think></think>d<|im_end|>e<|im_start|>", D, "f")
    assert cut(text, templates.qwen()) == (
        ("a<|im_start|>",),
        ("b", Q, "c"),
        ("<think></think>d<|im_end|>e<|im_start|>",),
        (D, "f"),
    )


def test_a_text_without_control_tokens_is_one_segment():
    assert cut((Q, "<", D), templates.qwen()) == ((Q, "<", D),)
    assert cut(("only fixed",), templates.qwen()) == (("only fixed",),)


@pytest.mark.parametrize("name", ["qwen", "gemma", "llama3", "llama2"])
def test_most_tokenizers_treat_a_text_behind_others_as_a_text(name, monkeypatch):
    tokenizer = getattr(templates, name)()
    control = next(iter(tokenizer.get_added_tokens_decoder().values())).content
    monkeypatch.delattr(cutting, "inner_tokenizer")  # whose making takes seconds for a large vocabulary
    prove_tokens(Prompt(((control,), (Q, D), (control,)), "test"), tokenizer, FILE)


def test_a_text_that_follows_another_has_no_space_of_its_own():
    for tokenizer in (templates.llama2(), templates.mistral(), templates.qwen()):
        behind = inner_tokenizer(tokenizer)
        for text in ("word", " word", "深度", ""):
            whole = tokenizer.encode("so" + text, add_special_tokens=False).ids
            start = tokenizer.encode("so", add_special_tokens=False).ids
            if whole[: len(start)] == start:
                assert behind.encode(text, add_special_tokens=False).ids == whole[len(start) :]


def test_metaspace_puts_its_sign_before_the_first_text_alone():
    tokenizer = templates.mistral()
    behind = inner_tokenizer(tokenizer)
    assert tokenizer.encode("word", add_special_tokens=False).tokens[0].startswith("▁")
    assert not behind.encode("word", add_special_tokens=False).tokens[0].startswith("▁")
    prompt = Prompt((("<s>",), (Q, D)), "test")
    prove_tokens(prompt, tokenizer, FILE)
    tokenizer.add_tokens([AddedToken("<n>", normalized=False)])
    assert behind.get_vocab() == templates.mistral().get_vocab()


def test_segments_whose_tokens_reach_into_others_are_refused():
    with pytest.raises(ModelLoadError, match=r"tokenizer.json: joins texts with the control tokens of test"):
        prove_tokens(Prompt((("<|im_start|>",), (Q,), (D,)), "test"), templates.qwen(), FILE)


def test_control_tokens_of_a_catalogues_prompt_are_the_tokenizers():
    prompt = Prompt((("<|im_start|>a <b c>",), ("<x>", Q, D), ("</think>",)), "catalogue.toml")
    check_control_tokens(prompt, templates.qwen(), FILE)
    for other in (Prompt((("<bos>",), (Q, D)), "x"), Prompt((), "x", (("<bos>",), (Q, D)), "Judge.")):
        with pytest.raises(ModelLoadError, match=r"tokenizer.json: has no control token '<bos>'"):
            check_control_tokens(other, templates.qwen(), FILE)


def test_answers_are_tokens_of_their_own():
    tokenizer = templates.qwen()
    expected = (tokenizer.token_to_id("yes"), tokenizer.token_to_id("no"))
    assert answer_ids(["yes", "no"], tokenizer, FILE) == expected
    with pytest.raises(ModelLoadError, match=r"tokenizer.json: has no token 'yesterdays'"):
        answer_ids(["yes", "yesterdays"], tokenizer, FILE)


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"tokenizer.json: not a tokenizer this version reads"):
        original_tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizers_own_limits_are_lifted(tmp_path):
    tokenizer = templates.qwen()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=99)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = original_tokenizer(tmp_path / "tokenizer.json")
    assert read.encode("a b c d").ids == templates.qwen().encode("a b c d").ids
