"""Collections are read from BEIR's and TREC's forms, and what fits nothing is told and left out."""

import codecs
import gzip

import pytest

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.evaluation.collection import CollectionFiles, read_collection
from tests.evaluation.conftest import FOLDER
from tests.evaluation.files import CORPUS, QRELS, QUERIES, RUN, json_lines, write_collection


def read(folder, **contents):
    write_collection(folder, **contents)
    return read_again(folder)


def read_again(folder):
    texts = folder / "queries.jsonl", folder / "corpus.jsonl", folder / "qrels.txt"
    return read_collection(CollectionFiles(*texts, folder / "run.trec"))


def test_the_small_collection_is_whole(collection):
    assert (len(collection.queries), len(collection.corpus)) == (169, 585)
    assert all(len(judged) == 1 for judged in collection.qrels.values())
    assert {len(found) for found in collection.candidates.values()} <= set(range(11))
    assert collection.pairs > 1_600


def test_a_run_is_ordered_as_trec_eval_orders_it(tmp_path):
    collection, _ = read(tmp_path)
    assert collection.candidates == {"q1": ["d3", "d1"], "q2": ["d2"]}
    # In float32 the first two are equal, and then the greater id goes first.
    ties = "q1 Q0 d1 1 1.00000001 x\nq1 Q0 d3 2 1.0 x\nq1 Q0 d2 3 2 x\nq2 Q0 d2 1 -1e300 x\n"
    collection, problems = read(tmp_path, run=ties)
    assert collection.candidates == {"q1": ["d2", "d3", "d1"], "q2": ["d2"]}
    assert problems.lines() == []


@pytest.mark.parametrize(
    ("qrels", "said"),
    [
        ("q1 0 nowhere 1\n", "qrels.txt:3: names no document of corpus.jsonl: 'nowhere'"),
        ("q9 0 d1 1\n", "qrels.txt:3: names no query of queries.jsonl: 'q9'"),
        ("q1 d1\n", "qrels.txt:3: a wrong number of columns, expected query, 0, document"),
        ("q1 0 d3 high\n", "qrels.txt:3: a relevance that is no whole number: 'high'"),
        ("q1 0 d3 nan\n", "qrels.txt:3: a relevance that is no whole number: 'nan'"),
        ("q1 0 d1 0\n", "qrels.txt:3: a pair that an earlier line judges, which counts: 'd1'"),
    ],
)
def test_a_judgement_that_fits_nothing_is_left_out_with_file_and_line(tmp_path, qrels, said):
    collection, problems = read(tmp_path, qrels=QRELS + qrels)
    assert problems.count == 1
    assert said in problems.lines()[0]
    assert collection.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q1 Q0 d2 3 nan x\n", "run.trec:4: a score that is no finite number: 'nan'"),
        ("q1 Q0 d9 3 1 x\n", "run.trec:4: names no document of the corpus: 'd9'"),
        ("q1 Q0 d1 3 1 x\n", "run.trec:4: a document that its query has already: 'd1'"),
        ("q1 d2 1\n", "run.trec:4: a wrong number of columns, expected query, Q0, document, rank"),
        ("q9 Q0 d1 1 1 x\n", "run.trec: 1 of its queries are not judged or not known"),
    ],
)
def test_a_candidate_that_fits_nothing_is_left_out_with_file_and_line(tmp_path, line, said):
    collection, problems = read(tmp_path, run=RUN + line)
    assert said in problems.lines()[0]
    assert collection.candidates == {"q1": ["d3", "d1"], "q2": ["d2"]}


def test_many_bad_lines_of_a_kind_are_told_by_their_first_and_their_number(tmp_path):
    _, problems = read(tmp_path, qrels=QRELS + "q1 0 nowhere 1\n" * 1_000)
    assert problems.count == 1_000
    assert len(problems.lines()) == 6
    assert problems.lines()[-1].startswith("left out 1,000 lines of ")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("qrels", "", "qrels.txt: is empty, expected query, 0, document, relevance"),
        ("qrels", "other 0 thing 1\n", "none of its 1 lines names a query and a document of this collection"),
        ("qrels", "q1 0 d1 0\n", "calls no document relevant"),
        ("qrels", b"\xff\xfe\x00\x00", "is UTF-16: convert it"),
        ("run", "", "run.trec: is empty, expected query, Q0, document, rank, score, tag"),
        ("run", "7 Q0 clueweb09 1 2.5 x\n", "is the run another collection's?"),
        ("run", "q1 d1\n", "columns, expected query, Q0, document, rank, score, tag: 2"),
        ("run", QRELS, "the columns of a judgement, not of a run: are --qrels and --run swapped?"),
        ("run", "q1\td1\t1\n", "the columns of a judgement, not of a run: are --qrels and --run swapped?"),
        ("qrels", RUN, "no line can be used; .*six columns: this is a run: are --qrels and --run swapped?"),
    ],
)
def test_a_file_of_which_nothing_can_be_used_is_refused(tmp_path, name, content, said):
    write_collection(tmp_path, **{name: content})
    with pytest.raises(ConfigurationError, match=said.replace("?", r"\?")) as raised:
        read_again(tmp_path)
    assert str(raised.value).count("expected") <= 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"not json\n", "no JSON object"),
        (b'["q1"]\n', "no JSON object, expected"),
        (b'{"text": "x"}\n', 'no "_id"'),
        (b'{"_id": "q1", "text": 5}\n', 'no "text", expected a text'),
        (b'{"_id": "q1", "text": " "}\n', "an empty text"),
        (b'{"_id": "q1", "text": "\\ud800"}\n', "half a surrogate pair"),
        (b'{"_id": "q1", "text": "caf\xe9"}\n', "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply|no JSON object"),
    ],
)
def test_texts_of_which_none_can_be_used_are_refused_by_the_first_reason(tmp_path, content, said):
    write_collection(tmp_path)
    (tmp_path / "queries.jsonl").write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        read_again(tmp_path)


def test_line_ends_of_windows_and_a_byte_order_mark_change_nothing(tmp_path):
    plain, _ = read(tmp_path)
    for name in ("queries.jsonl", "corpus.jsonl", "qrels.txt", "run.trec"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + data.replace(b"\n", b"\r\n"))
    found, problems = read_again(tmp_path)
    assert found == plain
    assert found.digest == plain.digest
    assert problems.lines() == []


def test_gzipped_files_and_tab_separated_texts_give_the_same_collection(tmp_path):
    plain, _ = read(tmp_path)
    for name, texts in (("queries", QUERIES), ("corpus", CORPUS)):
        lines = "".join(f"{key}\t{text}\n" for key, text in texts.items())
        (tmp_path / f"{name}.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    header = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "beir.tsv").write_text(f"{header}q1\td1\t1\nq2\td2\t2.0\n")
    files = CollectionFiles(
        tmp_path / "queries.tsv.gz", tmp_path / "corpus.tsv.gz", tmp_path / "beir.tsv", tmp_path / "run.trec"
    )
    assert read_collection(files)[0] == plain


def test_a_gzip_that_was_cut_is_refused(tmp_path):
    write_collection(tmp_path)
    (tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(json_lines(QUERIES).encode())[:-9])
    texts = tmp_path / "queries.jsonl.gz", tmp_path / "corpus.jsonl", tmp_path / "qrels.txt"
    with pytest.raises(ConfigurationError, match="ends in the middle"):
        read_collection(CollectionFiles(*texts))


def test_ids_may_hold_spaces_and_any_script(tmp_path):
    write_collection(
        tmp_path,
        queries={"问题 1": "pandas"},
        corpus={"doc ✓ 1": "Pandas eat."},
        run="问题 1\tQ0\tdoc ✓ 1\t1\t2\tx\n",
    )
    (tmp_path / "qrels.txt").write_text("query-id\tcorpus-id\tscore\n问题 1\tdoc ✓ 1\t1\n")
    found, problems = read_again(tmp_path)
    assert found.candidates == {"问题 1": ["doc ✓ 1"]}
    assert problems.lines() == []


def test_what_bears_on_the_measures_is_said(tmp_path):
    queries = {**QUERIES, "q3": "no run has this", "q4": "nothing is relevant to this"}
    write_collection(
        tmp_path, queries=queries, qrels=QRELS + "q3 0 d3 1\nq4 0 d3 0\n", run=RUN + "q4 Q0 d3 1 1 x\n"
    )
    found, problems = read_again(tmp_path)
    assert found.candidates["q3"] == []
    assert problems.notes == [
        "1 judged queries have no candidate: every measure of theirs is 0",
        "1 judged queries have no relevant document: every measure of theirs is 0",
    ]


def test_a_folder_without_its_files_says_which_is_missing(tmp_path):
    with pytest.raises(ConfigurationError, match="no such folder"):
        CollectionFiles.of_beir(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"dev\.tsv: no such file: its splits are test"):
        CollectionFiles.of_beir(FOLDER, "dev")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    with pytest.raises(ConfigurationError, match=r"queries\.jsonl: no such file"):
        CollectionFiles.of_beir(tmp_path)


def test_a_directory_in_place_of_a_file_is_told(tmp_path):
    write_collection(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    files = CollectionFiles(tmp_path / "folder.jsonl", tmp_path / "corpus.jsonl", tmp_path / "qrels.txt")
    with pytest.raises(ConfigurationError, match="is a directory where a file is expected"):
        read_collection(files)


def test_a_change_of_any_text_gives_another_digest_and_one_of_a_judgement_that_of_judgements(tmp_path):
    first, _ = read(tmp_path)
    assert read(tmp_path)[0].digest == first.digest
    others = [
        read(tmp_path, corpus={**CORPUS, "d1": "Other."})[0],
        read(tmp_path, queries={**QUERIES, "q1": "other"})[0],
        first.cut(1),
    ]
    assert len({each.digest for each in (first, *others)}) == 4
    assert {each.judgements_digest for each in others} == {first.judgements_digest}
    judged, _ = read(tmp_path, qrels="q1 0 d1 2\nq2 0 d2 2\n")
    assert judged.digest == first.digest
    assert judged.judgements_digest != first.judgements_digest
