"""Renders chat templates in a process of its own, since a template is a program that a checkpoint brings.

The environment is the same as transformers' apply_chat_template has, but for the date. The module is the
program of that process too, which runs without the package: it imports nothing of it.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Conversation: TypeAlias = list[dict[str, Any]]

CPU_SECONDS = 1  # for all conversations of one template, which honest ones render in a tenth
WALL_SECONDS = 30  # the last resort on a machine with no free CPU
ADDRESS_BYTES = 512 << 20
TEXT_CHARACTERS = 1 << 20  # of one rendered conversation
STANDARD_FILES = 3
REASON_CHARACTERS = 120
TOO_SLOW = f"takes more than {CPU_SECONDS} s to render"
TOO_LONG = f"writes more than {TEXT_CHARACTERS:,} characters"


class Rendered(NamedTuple):
    """The text of one conversation, or why there is none, as the rest of "the template …"."""

    text: str
    failure: str = ""


class Refused(TemplateError):
    """A template has done what is not allowed; the message is the reason, as in Rendered."""


def render(
    source: str, variables: Mapping[str, Any], groups: Sequence[Sequence[Conversation]]
) -> list[list[Rendered]]:
    """Renders groups of conversations by a template; a group ends at its first failure.

    `variables` is what the template sees beside `messages`, in JSON's types.
    """
    task = json.dumps({"source": source, "variables": dict(variables), "groups": groups})
    command = [sys.executable, "-I", __file__]
    try:
        done = subprocess.run(
            command, input=task, env={}, capture_output=True, encoding="utf-8", timeout=WALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return [[Rendered("", TOO_SLOW)]] * len(groups)
    if done.returncode:
        return [[Rendered("", _death(done.returncode, done.stderr))]] * len(groups)
    return [[Rendered(*each) for each in group] for group in json.loads(done.stdout)]


def constants(source: str) -> list[str | int]:
    """Lists the texts and numbers that a template's code holds; [] if the template cannot be parsed."""
    try:
        found = _environment().parse(source).find_all(nodes.Const)
        return list(dict.fromkeys(node.value for node in found if type(node.value) in (str, int)))
    except (TemplateSyntaxError, RecursionError):
        return []


def used_variables(source: str) -> set[str]:
    """Names what a template's code reads; none if the template cannot be parsed."""
    try:
        return {node.name for node in _environment().parse(source).find_all(nodes.Name) if node.ctx == "load"}
    except (TemplateSyntaxError, RecursionError):
        return set()


def _death(code: int, errors: str) -> str:
    """Says why the process ended, by its exit status: the negative number of a signal."""
    if -code in (signal.SIGXCPU, signal.SIGKILL):
        return TOO_SLOW
    last = (errors.strip().splitlines() or [""])[-1][:REASON_CHARACTERS]
    return f"ends the process that renders it (status {code}{f', {last}' if last else ''})"


class _Namespace(jinja2.utils.Namespace):
    """The global `namespace`, which keeps no names that begin with an underscore."""

    def __init__(*args: Any, **names: Any) -> None:
        self, given = args[0], dict(*args[1:], **names)
        for name in given:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _Dict:
    """The global `dict`, of which a template reaches no attributes."""

    def __call__(self, *args: Any, **names: Any) -> dict[Any, Any]:
        return dict(*args, **names)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Generation(Extension):
    """The tag `generation`, which marks an assistant's words for training, and changes no text."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja's own extensions have it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        return str(caller())


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace keeps no {name!r}")


def _raise_exception(message: object) -> None:
    raise Refused(f"raises {_line(message)!r}")


def _strftime_now(_: object) -> None:
    raise Refused("depends on the date")


def _by_chance(*_: object, **__: object) -> None:
    raise Refused("depends on chance")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    """Makes the environment in which transformers compiles chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters |= {"tojson": _to_json, "random": _by_chance}
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        lipsum=_by_chance,
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment


def _line(text: object) -> str:
    return " ".join(str(text).split())[:REASON_CHARACTERS]


def _reason(error: BaseException) -> str:
    if isinstance(error, Refused):
        return str(error.message)
    if isinstance(error, MemoryError):
        return f"takes more than {ADDRESS_BYTES >> 20} MiB to render"
    return f"fails ({type(error).__name__}: {_line(error)})"


def _pieces(template: jinja2.Template, variables: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a template writes, until that is too long."""
    length = 0
    for piece in template.generate(variables):
        length += len(piece)
        if length > TEXT_CHARACTERS:
            raise Refused(TOO_LONG)
        yield piece


def _rendered(template: jinja2.Template, variables: Mapping[str, Any], messages: Conversation) -> Rendered:
    try:
        text = "".join(_pieces(template, {"messages": messages, **variables}))
        text.encode()  # a template can write half a surrogate pair, of which no token can be made
    except Exception as error:
        return Rendered("", _reason(error))
    return Rendered(text)


def _until_failure(
    template: jinja2.Template, variables: Mapping[str, Any], group: Sequence[Conversation]
) -> Iterator[Rendered]:
    for messages in group:
        rendered = _rendered(template, variables, messages)
        yield rendered
        if rendered.failure:
            return


def _limit() -> None:
    """Bounds the process: its CPU time and memory; it can neither open nor write a file."""
    seconds = round(time.process_time()) + CPU_SECONDS
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: ADDRESS_BYTES,
        resource.RLIMIT_NOFILE: STANDARD_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def _rehearse() -> None:
    """Makes Jinja import all that it imports late, for a template that renders and for one that fails."""
    for source in ("{% if 1 %}{{ 'text' }}{% endif %}", "{{ 1 / 0 }}", "{{ {}.x.y }}"):
        _rendered(_environment().from_string(source), {}, [])


def main() -> None:
    """Renders the groups of a task on stdin, in JSON, and writes lists of Rendered to stdout."""
    task = json.load(sys.stdin)
    _rehearse()
    _limit()
    try:
        template = _environment().from_string(task["source"])
    except Exception as error:
        groups = [[Rendered("", _reason(error))]] * len(task["groups"])
    else:
        groups = [list(_until_failure(template, task["variables"], group)) for group in task["groups"]]
    json.dump(groups, sys.stdout)


if __name__ == "__main__":
    main()
