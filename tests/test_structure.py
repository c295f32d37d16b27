"""What keeps the listing readable: few files in a folder, each class name once, short functions."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import rerank_grpc

PACKAGE = Path(rerank_grpc.__file__).parent
MOST_FILES_IN_A_FOLDER = 12
MOST_FILES = 120
LONGEST_FUNCTION = 45  # lines


def written_by_hand() -> list[Path]:
    """Lists the package's modules, without the generated ones."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "v1")


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    """Yields the definitions of some kinds, with their files."""
    for path in written_by_hand():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, kinds):
                yield path.relative_to(PACKAGE), node


def test_no_folder_holds_more_files_than_one_can_take_in():
    folders = Counter(path.parent for path in written_by_hand())
    assert {str(folder): count for folder, count in folders.items() if count > MOST_FILES_IN_A_FOLDER} == {}
    assert sum(folders.values()) <= MOST_FILES


def test_each_class_name_stands_once():
    places = defaultdict(list)
    for path, node in nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        places[node.name].append(str(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_functions_fit_on_a_screen():
    long = [
        f"{path}: {node.name}"
        for path, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert long == []


@pytest.mark.parametrize("path", written_by_hand(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_in_its_first_line_what_it_is_for(path: Path):
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert text
    assert text.partition("\n")[0].endswith("."), "a sentence, which fits on the line"


def test_docstrings_have_nouns_as_subjects():
    """A sentence that begins with Who, What or So hides its subject."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    hidden = []
    for path, node in nodes(*kinds):
        assert isinstance(node, kinds)
        text = ast.get_docstring(node) or ""
        hidden += [
            f"{path}: {sentence[:60]}"
            for sentence in text.replace("\n", " ").split(". ")
            if sentence.startswith(("Who ", "What ", "So ", "Whoever ", "See "))
        ]
    assert hidden == []
