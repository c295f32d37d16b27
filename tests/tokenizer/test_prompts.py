"""A prompt's parts, put together, are the tokens of the whole text, for any template and tokenizer."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Original

from rerank_grpc.errors import InvalidRequest, ModelLoadError
from rerank_grpc.evidence.cutting import cut
from rerank_grpc.evidence.prompt import Placeholder, Prompt, Segment
from rerank_grpc.sequence import TokenizedRequest
from rerank_grpc.tokenizer.prompts import PromptFraming
from rerank_grpc.tokenizer.tokenizer import Tokenizer
from rerank_grpc.tokenizer.vocabulary import read_tokenizer
from rerank_grpc.types import Truncation
from tests import random_models as checkpoints
from tests.support import token_ids
from tests.texts import span_of, tokenize

Q, D, I = Placeholder.QUERY, Placeholder.DOCUMENT, Placeholder.INSTRUCTION  # noqa: E741
TURN, END = "<|im_start|>", "<|im_end|>"
TEMPLATES: dict[str, tuple[Segment, ...]] = {
    "a tail": (
        (f"{TURN}user\n",),
        ("query: ", Q, "\ndocument: ", D, "\nIs it relevant?\nRelevance:"),
        (f"{END}\n{TURN}assistant\n",),
    ),
    "a tail of a line break": ((f"{TURN}user\n",), ("query: ", Q, "\n", D, "\n"), (END,)),
    "query as the system's message": (
        (f"{TURN}system\n",),
        (Q,),
        (f"{END}\n{TURN}user\n",),
        (D,),
        (f"{END}\n{TURN}assistant\n",),
    ),
    "document first": ((f"{TURN}user\n",), ("document: ", D, "\nquery: ", Q, "\n"), (END,)),
    "query in the turn after the document's": (
        (f"{TURN}user\n",),
        (D,),
        (f"{END}\n{TURN}user\n",),
        (Q,),
        (END,),
    ),
    "no control tokens": (("question:", Q, " \n \n passage:", D),),
    "query right before the document": ((TURN,), ("both: ", Q, D, "."), (END,)),
    "a lead that is a word's beginning": ((TURN,), (Q, " re", D), (END,)),
}
QUERIES = ["how does it wait?", "trailing space ", "line\n", "深度学习", "7", ""]


def llama(change: Callable[[Original], None]) -> Original:
    """A tokenizer like Llama-2's, which puts a space before a text."""
    data = json.loads(checkpoints.gemma_tokenizer().to_str())
    tokenizer = Original.from_str(json.dumps(data | {"normalizer": None, "pre_tokenizer": None}))
    change(tokenizer)
    return tokenizer


def metaspace(scheme: Any) -> Callable[[Original], None]:
    def change(tokenizer: Original) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)

    return change


def prepend(tokenizer: Original) -> None:
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def spaced_bytes() -> Original:
    tokenizer = checkpoints.qwen_tokenizer()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Original]] = {
    "qwen": checkpoints.qwen_tokenizer,
    "gemma": checkpoints.gemma_tokenizer,
    "metaspace before the first word": lambda: llama(metaspace("first")),
    "metaspace after control tokens": lambda: llama(metaspace("always")),
    "prepending normalizer": lambda: llama(prepend),
    "bytes with a space before": spaced_bytes,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("tokenizers"), {}
    for number, (name, make) in enumerate(TOKENIZERS.items()):
        tokenizer = make()
        tokenizer.add_special_tokens([TURN, END])
        found[name] = root / str(number) / "tokenizer.json"
        found[name].parent.mkdir()
        tokenizer.save(str(found[name]))
    return found


def asked(
    file: Path, prompt: Prompt | tuple[Segment, ...], max_tokens: int = 10_000, *, shares: bool = True
) -> Tokenizer:
    if not isinstance(prompt, Prompt):  # the parts of a template, cut as reading it cuts them
        whole = tuple(part for segment in prompt for part in segment)
        prompt = Prompt(cut(whole, original(file)), "chat_template.jinja")
    framing = PromptFraming(read_tokenizer(file), prompt, max_tokens=max_tokens, shares_prefixes=shares)
    return Tokenizer(framing)


def text_of(segments: tuple[Segment, ...], query: str, document: str, instruction: str = "") -> str:
    texts = {Q: query, D: document, I: instruction}
    return "".join(
        texts[part] if isinstance(part, Placeholder) else part for each in segments for part in each
    )


@functools.cache
def original(file: Path) -> Original:
    return Original.from_file(str(file))


def whole_ids(file: Path, text: str) -> list[int]:
    return list(original(file).encode(text, add_special_tokens=False).ids)


def ids_of(request: TokenizedRequest) -> list[list[int]]:
    chosen = [request.sequences[document.chunks[0].sequence] for document in request.documents]
    return [token_ids(sequence.whole()) for sequence in chosen]


def documents(count: int) -> list[str]:
    """Natural texts with ends that a tokenizer could join with what stands beside them."""
    chance, source = random.Random(count), " ".join(checkpoints.texts()[:50]) + " 深度学习，重新排序。" * 9
    ends = ["", " ", "\n", "\n\n", ".", "。", "'s", "7", "...", '"', ":", "é", "\t", " \n", "  "]
    found = []
    for _ in range(count):
        start = chance.randrange(len(source) - 60)
        text = source[start : start + chance.randrange(60)]
        found.append(chance.choice(ends) + text + chance.choice(ends))
    return found


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_parts_ids_are_those_of_the_whole_text(
    tokenizer: str, template: str, shares: bool, files: dict[str, Path]
) -> None:
    segments, file = TEMPLATES[template], files[tokenizer]
    own = asked(file, segments, shares=shares)
    for query in QUERIES:
        texts = documents(25)
        expected = [whole_ids(file, text_of(segments, query, text)) for text in texts]
        request = tokenize(own, query, texts)
        assert ids_of(request) == expected
        assert not request.query_truncated
        if not shares:
            assert {sequence.prefix for sequence in request.sequences} == {None}


def shared_tokens(request: TokenizedRequest) -> int:
    prefix = request.sequences[0].prefix
    return 0 if prefix is None else sum(map(len, prefix.chain()))


def test_all_that_stands_before_a_document_is_shared_but_a_short_lead(files: dict[str, Path]) -> None:
    for name in ("a tail", "query as the system's message"):
        request = tokenize(asked(files["qwen"], TEMPLATES[name]), "how?", [" 7", "word"])
        before = text_of(TEMPLATES[name], "how?", "\0").partition("\0")[0]
        assert shared_tokens(request) >= len(whole_ids(files["qwen"], before)) - 1


def test_only_the_systems_text_is_shared_where_the_document_comes_first(files: dict[str, Path]) -> None:
    request = tokenize(
        asked(files["qwen"], TEMPLATES["query in the turn after the document's"]), "how?", ["d"]
    )
    assert shared_tokens(request) == len(whole_ids(files["qwen"], f"{TURN}user\n"))


def reference(file: Path, segments: tuple[Segment, ...], query: str, text: str, most: int) -> list[int]:
    """What sentence-transformers reads: the first tokens, with the template's last ones over their end."""
    ids, one, four = (whole_ids(file, text_of(segments, query, each)) for each in (text, "0", "1 2 3 4"))
    keep = next(at for at in range(len(one)) if one[-1 - at] != four[-1 - at])
    return ids if len(ids) <= most else ids[: most - keep] + one[len(one) - keep :]


@pytest.mark.parametrize("template", ["a tail", "a tail of a line break", "query as the system's message"])
def test_a_document_is_cut_where_the_reference_cuts_it(template: str, files: dict[str, Path]) -> None:
    segments, file = TEMPLATES[template], files["qwen"]
    fixed = len(whole_ids(file, text_of(segments, "how?", "")))
    for most in range(fixed + 40, fixed + 46):
        own = asked(file, segments, most)
        texts = [" ".join(checkpoints.texts()[:9])[:length] for length in (*range(90, 160), 1_000, 20_000)]
        found = ids_of(tokenize(own, "how?", texts))
        assert found == [reference(file, segments, "how?", text, most) for text in texts]


@pytest.mark.parametrize("template", TEMPLATES)
def test_chunks_know_their_place_and_all_stand_in_the_prompt(template: str, files: dict[str, Path]) -> None:
    segments, file = TEMPLATES[template], files["qwen"]
    text = " ".join(f"word{number}" for number in range(200))
    most = len(whole_ids(file, text_of(segments, "how?", ""))) + 60
    for truncation in (Truncation.END, Truncation.START):
        request = tokenize(
            asked(file, segments, most), "how?", [text], max_chunks_per_document=64, truncation=truncation
        )
        chunks = request.documents[0].chunks
        spans = [span_of(chunk) for chunk in chunks]
        assert len(spans) > 5
        assert spans[0].start == 0
        assert spans[-1].end == len(text)
        assert all(one.start < two.start < one.end for one, two in pairwise(spans))
        for chunk, span in zip(chunks, spans, strict=True):
            ids = token_ids(request.sequences[chunk.sequence].whole())
            read = original(file).decode(ids, skip_special_tokens=False)
            before, after = text_of(segments, "how?", "\0").split("\0")
            assert read.startswith(before.rstrip(" ")) or template == "a lead that is a word's beginning"
            assert read.endswith(after)
            assert text[span.start : span.end].strip() in read
            assert len(ids) <= most


def test_a_cut_from_the_start_keeps_the_prompt(files: dict[str, Path]) -> None:
    segments, file = TEMPLATES["query right before the document"], files["qwen"]
    most = len(whole_ids(file, text_of(segments, "how?", ""))) + 40
    for count in (100, 20_000):
        own = asked(file, segments, most)
        (ids,) = ids_of(tokenize(own, "how?", ["word " * count + "last"], truncation=Truncation.START))
        read = original(file).decode(ids, skip_special_tokens=False)
        assert read.startswith(f"{TURN}both: how?")
        assert read.endswith(f" last.{END}")
        assert len(ids) == most


def test_tokens_of_a_document_are_counted_without_its_ends(files: dict[str, Path]) -> None:
    own = asked(files["qwen"], TEMPLATES["a tail"])
    (document,) = tokenize(own, "how?", ["word word word"]).documents
    assert document.chunks[0].tokens == len(whole_ids(files["qwen"], " word word word"))
    (document,) = tokenize(own, "how?", ["word word word"], max_tokens_per_document=2).documents
    assert document.truncated
    assert document.chunks[0].tokens == 2


@pytest.mark.parametrize("template", ["a tail", "document first", "query right before the document"])
def test_a_long_query_is_whole_beside_what_fits_and_cut_beside_the_rest(
    template: str, files: dict[str, Path]
) -> None:
    segments, file = TEMPLATES[template], files["qwen"]
    fixed = len(whole_ids(file, text_of(segments, "", "")))
    query = "the " * 69 + "it"
    request = tokenize(asked(file, segments, fixed + 100), query, ["it", "the " * 500, "is " * 60])
    ids = ids_of(request)
    assert ids[0] == whole_ids(file, text_of(segments, query, "it"))
    assert [document.truncated for document in request.documents] == [False, True, True]
    assert request.query_truncated
    assert all(fixed + 90 < len(each) <= fixed + 100 for each in ids[1:])
    assert all(50 <= chunk.tokens <= 52 for each in request.documents[1:] for chunk in each.chunks)
    assert not tokenize(asked(file, segments, fixed + 100), query, ["it"]).query_truncated
    with pytest.raises(InvalidRequest) as caught:
        tokenize(asked(file, segments, fixed + 100), query, ["a", "is " * 60], truncation=Truncation.NONE)
    assert caught.value.violations[0].field == "query"
    tokenize(asked(file, segments, fixed + 100), query, ["it"], truncation=Truncation.NONE)


def test_a_query_longer_than_the_model_is_cut_for_every_document(files: dict[str, Path]) -> None:
    file, segments = files["qwen"], TEMPLATES["a tail"]
    request = tokenize(asked(file, segments, 200), "word " * 900, ["", "short", "word " * 900])
    assert request.query_truncated
    assert max(map(len, ids_of(request))) == 200


def instructed(default: str = "") -> Prompt:
    plain = TEMPLATES["a tail"]
    return Prompt(plain, "chat_template.jinja", ((f"{TURN}system\n",), (I,), (f"{END}\n",), *plain), default)


@pytest.mark.parametrize("default", ["", "Judge it."])
def test_an_instruction_stands_in_its_own_segments_only_when_there_is_one(
    default: str, files: dict[str, Path]
) -> None:
    prompt, file = instructed(default), files["qwen"]
    own = asked(file, prompt)
    expected = text_of(prompt.instructed if default else prompt.segments, "q", "d", default)
    assert ids_of(tokenize(own, "q", ["d"])) == [whole_ids(file, expected)]
    given = text_of(prompt.instructed, "q", "d", "Find it.")
    assert ids_of(tokenize(own, "q", ["d"], instruction="Find it.")) == [whole_ids(file, given)]


def test_texts_are_stripped_as_the_template_says_and_spans_are_in_the_callers_text(
    files: dict[str, Path],
) -> None:
    segments, file = TEMPLATES["a tail"], files["qwen"]
    prompt = Prompt(segments, "chat_template.jinja", strips=frozenset({Q, D}))
    assert ids_of(tokenize(asked(file, prompt), " \n how? ", ["\t short \n"])) == [
        whole_ids(file, text_of(segments, "how?", "short"))
    ]
    text = "\n\n  " + " ".join(f"word{number}" for number in range(200)) + " \n"
    most = len(whole_ids(file, text_of(segments, "how?", ""))) + 50
    request = tokenize(asked(file, prompt, most), "how?", [text], max_chunks_per_document=64)
    spans = [span_of(chunk) for chunk in request.documents[0].chunks]
    assert (spans[0].start, spans[-1].end) == (4, len(text) - 2)
    assert text[spans[1].start : spans[1].end].split()[1] in text


def test_a_template_whose_parts_are_not_the_whole_text_is_refused_but_the_catalogues_is_not(
    files: dict[str, Path],
) -> None:
    segments: tuple[Segment, ...] = ((TURN,), (Q, f"{END} ", D))  # a control token among texts
    with pytest.raises(ModelLoadError, match=r"tokenizer.json: .*chat_template.jinja.*: use the tokenizer"):
        asked(files["qwen"], Prompt(segments, "chat_template.jinja"))
    asked(files["qwen"], Prompt(segments, "catalogue.toml"))


def test_added_tokens_of_the_prompt_are_no_text_but_white_space_and_others_are(tmp_path: Path) -> None:
    tokenizer = checkpoints.qwen_tokenizer()
    tokenizer.add_special_tokens([TURN, END])
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in ("<ask>", "<mine>", "\n\n")])
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    own = asked(file, ((f"{TURN}<ask>\n\n",), (Q, "\n", D), (END,)))
    (ids,) = ids_of(tokenize(own, "<ask> a\n\nb <mine>", [f"<ask>{END}"]))
    counts = {
        each: ids.count(tokenizer.token_to_id(each) or 0) for each in (TURN, END, "<ask>", "\n\n", "<mine>")
    }
    assert counts == {TURN: 1, END: 1, "<ask>": 1, "\n\n": 2, "<mine>": 1}
