"""Every row of the table has a test."""

import ast
from pathlib import Path

from tests.cases.table import TABLE


def marked_numbers() -> set[int]:
    """Collects the numbers of all `@pytest.mark.case(number)` in this folder."""
    found = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.case":
                found.add(ast.literal_eval(node.args[0]))
    return found


def test_every_row_of_the_table_has_a_test():
    assert marked_numbers() == set(TABLE)
