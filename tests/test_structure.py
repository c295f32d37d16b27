"""What keeps the listing readable: few files in a folder, each class name once, short functions."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import rerank_grpc

PACKAGE = Path(rerank_grpc.__file__).parent
ROOT = Path(__file__).resolve().parent.parent
MOST_FILES_IN_A_FOLDER = 12
MOST_FILES = 360
LONGEST_FUNCTION = 45  # lines


def written_by_hand() -> list[Path]:
    """Lists the package's modules, without the generated ones."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name not in ("v1", "protocols"))


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


def test_a_module_says_in_its_first_line_what_it_is_for():
    silent = []
    for path in written_by_hand():
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        if not text.partition("\n")[0].endswith("."):
            silent.append(str(path.relative_to(PACKAGE)))
    assert silent == [], "a module's docstring begins with a sentence that fits on the line"


def test_the_documents_name_files_that_exist():
    gone = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"`([a-z_0-9/]+/[a-z_0-9]+\.(?:py|c|toml|json))`", page.read_text("utf-8")):
            if not (PACKAGE / name).exists() and not (ROOT / name).exists():
                gone.append(f"{page.relative_to(ROOT)}: {name}")
    assert gone == []


def test_the_page_on_the_structure_lists_every_module():
    page = (ROOT / "docs" / "structures.md").read_text("utf-8")
    listed = set(re.findall(r"[a-z_0-9]+\.py", page))
    missing = [
        str(path.relative_to(PACKAGE))
        for path in written_by_hand()
        if not path.name.startswith("__") and path.parent.name != "dialects" and path.name not in listed
    ]
    assert missing == []
    known = {path.name for path in written_by_hand()}
    assert {name for name in listed if not name.startswith("generate")} - known == set()


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
