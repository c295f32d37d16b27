"""Templates are rendered as transformers renders them, by a process that can do nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from rerank_grpc.evidence import rendering
from rerank_grpc.evidence.rendering import Rendered, constants, render, used_variables
from tests.evidence import templates

MESSAGES = [{"role": "query", "content": "q <é>\n"}, {"role": "document", "content": "d"}]

SAME = (
    "{% if true %}\n  line\n  {% endif %}\nend\n\n",
    "{{ messages | tojson }}{{ messages | tojson(indent=2, ensure_ascii=true, sort_keys=true) }}",
    "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% set n = namespace(a=1) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}",
    "{{ dict(a=1).a }}{{ dict.fromkeys(['b'], 2).b }}{{ namespace({'c': 3}).c }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}x",
    "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ missing }}{{ none is defined }}",
    "{{ strftime_now is defined }}{% macro a(x) %}<{{ x }}>{% endmacro %}{{ a(messages[1].content) | trim }}",
    "{{ 'a\\nb' ~ 1 }}{{ 'ä' | pprint }}{{ messages | map(attribute='role') | join(',') | title }}\r\n\r\n",
)


def one(source: str) -> Rendered:
    variables = {"tools": None, "documents": None, "add_generation_prompt": True}
    ((rendered,),) = render(source, variables, [[MESSAGES]])
    return rendered


@pytest.mark.parametrize("source", SAME)
def test_the_text_is_the_same_as_transformers(source):
    theirs: Any = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True)
    assert one(source) == Rendered(theirs[0][0])


@pytest.mark.parametrize(
    "source",
    [
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace({'_a': 1}) %}",
        "{{ messages.append(1) }}",
        "{{ dict.__init__() }}",
        "{{ dict.mro() }}",
        "{{ ''.__class__.mro() }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ missing.attribute }}",
    ],
)
def test_what_transformers_refuses_fails(source):
    with pytest.raises(Exception, match=r".+"):
        render_jinja_template([MESSAGES], chat_template=source)
    assert one(source).failure


def test_a_group_ends_at_its_first_failure_and_others_go_on():
    source = "{{ 1 / messages[0] }}"
    assert render(source, {}, [[[1], [0], [1]], [[2]]]) == [  # type: ignore[list-item]
        [Rendered("1.0"), Rendered("", "fails (ZeroDivisionError: division by zero)")],
        [Rendered("0.5")],
    ]


def test_the_process_opens_no_file_and_has_no_environment(monkeypatch, tmp_path):
    """By a program that does what a template must not be able to do, in the template's place."""
    monkeypatch.setenv("SECRET", "in the environment")
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, sys\n"
        f"sys.path.insert(0, {str(rendering.__file__).rpartition('/')[0]!r})\n"
        "import rendering\n"
        "rendering._limit()\n"
        "try:\n    open('/etc/hostname')\n"
        "except OSError as error:\n    found = error.strerror\n"
        "json.dump([[[os.environ.get('SECRET', 'none') + ' ' + found, '']]], sys.stdout)\n"
    )
    monkeypatch.setattr(rendering, "__file__", str(program))
    assert one("").text == "none Too many open files"


def test_the_death_of_the_process_is_told(monkeypatch, tmp_path):
    program = tmp_path / "program.py"
    monkeypatch.setattr(rendering, "__file__", str(program))
    program.write_text("import nothing_of_the_kind")
    assert one("").failure == (
        "ends the process that renders it (status 1, "
        "ModuleNotFoundError: No module named 'nothing_of_the_kind')"
    )
    program.write_text("import os; os.kill(os.getpid(), 11)")
    assert one("").failure == "ends the process that renders it (status -11)"
    program.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(rendering, "WALL_SECONDS", 0.2)
    assert one("").failure == "takes more than 1 s to render"


def test_constants_and_variables_are_read_without_rendering():
    source = "{% if a == 'x' or b | length > 7 %}{{ bos_token ~ 'y' }}{% endif %}{% set c = 1 %}'z' 9"
    assert constants(source) == ["x", 7, "y", 1]
    assert used_variables(source) == {"a", "b", "bos_token"}


@pytest.mark.parametrize("source", ["{% if %}", "{{ " + "(" * 5_000 + ")" * 5_000 + " }}"])
def test_a_template_that_cannot_be_parsed_has_no_constants(source):
    assert constants(source) == []
    assert used_variables(source) == set()
    assert one(source).failure


def test_the_environment_has_the_same_names_as_transformers():
    theirs = _compile_jinja_template(templates.ZERANK).environment
    ours = rendering._environment()
    for names in ("filters", "tests", "globals"):
        assert set(getattr(theirs, names)) == set(getattr(ours, names))
    assert (theirs.trim_blocks, theirs.lstrip_blocks) == (ours.trim_blocks, ours.lstrip_blocks)
    assert (theirs.keep_trailing_newline, theirs.undefined) == (ours.keep_trailing_newline, ours.undefined)
