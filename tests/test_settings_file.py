"""A file of settings in TOML: what it may hold, what it gives, and that it is written as it is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rerank_grpc.config.options import (
    REST_OPTIONS,
    SERVER_OPTIONS,
    SERVER_TOKEN_VARIABLES,
    Option,
    OptionError,
)
from rerank_grpc.config.origins import Effective, Origin
from rerank_grpc.config.reading import (
    read_catalogue_path,
    read_client_settings,
    read_effective,
    read_rest_settings,
    read_settings,
)
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.config.settings_file import MOST_BYTES, read_file, write_file
from tests.authority import HERE, Authority
from tests.test_config import SAMPLES

ROOT = Path(__file__).resolve().parent.parent
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of settings and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "rerank.toml"
        path.write_text(text, "utf-8")
        return str(path)

    return write


def sample_of(option: Option, folder: Path) -> str:
    """Gives a text that an option takes and that is not its default; a path in it is absolute."""
    if option.name in ("token-file", "upstream-token-file"):
        (folder / "tokens").write_text("canary-one\ncanary-two\n")
        return str(folder / "tokens")
    if option.name == "target":
        return "far:1"
    if option.name == "upstream-tls":
        return "on"
    if option.name == "upstream-server-name":
        return "rerank.internal"
    if (role := option.name.removeprefix("upstream-").removeprefix("tls-")) in (
        "ca",
        "cert",
        "client-ca",
        "key",
    ):
        if not (folder / "ca").exists():
            Authority(folder / "ca").issue("here", *HERE)
        return str(folder / "ca" / {"cert": "here.pem", "key": "here.key"}.get(role, "ca.pem"))
    text = SAMPLES[option.name][0]
    return str(folder / text) if option.read is Path else text


def given_to(option: Option, text: str) -> dict[str, str | list[str]]:
    return {option.name: [text] if option.repeatable else text}


def refusal(write: Write, text: str) -> str:
    """Returns the one line by which a file is refused, without the file's name."""
    path = write(text)
    with pytest.raises(OptionError) as caught:
        read_settings({"config": path}, {})
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# These make sense beside others alone.
TOGETHER = (
    *("tls-cert", "tls-key", "tls-client-ca"),
    *("upstream-cert", "upstream-key", "upstream-server-name"),
)
ALONE, ALONE_OF_REST = (
    [option for option in options if option.name not in TOGETHER]
    for options in (SERVER_OPTIONS, REST_OPTIONS)
)


# What it gives


@pytest.mark.parametrize("option", ALONE, ids=lambda option: option.name)
def test_a_key_means_the_same_as_the_flag_of_its_name(option: Option, tmp_path: Path, write: Write):
    text = sample_of(option, tmp_path)
    by_flag = read_settings(given_to(option, text), {})
    values = [f'"{text}"']
    values += [f'["{text}"]'] if option.repeatable else []
    values += [text] if option.is_numeric and text[0].isdigit() else []
    for value in values:
        path = write(f"{option.name} = {value}\n")
        assert read_settings({"config": path}, {}) == by_flag != ServerSettings()
        assert read_settings({}, {"RERANK_CONFIG": path}) == by_flag


@pytest.mark.parametrize("option", [o for o in SERVER_OPTIONS if not o.is_numeric], ids=lambda o: o.name)
def test_a_number_is_refused_where_a_flag_takes_none(option: Option, write: Write):
    assert refusal(write, f"{option.name} = 5\n").startswith(f"{option.name}: takes a string")


def test_a_flag_goes_before_a_variable_and_that_before_the_file(write: Write):
    path = write('port = 1\ngrace = 2\nhost = "::1"\nadmin-port = 4\n')
    variables = {"RERANK_PORT": "11", "RERANK_GRACE": "12", "RERANK_CONFIG": "another.toml"}
    flags = {"config": path, "port": "21"}
    settings = read_settings(flags, variables)
    assert (settings.port, settings.grace_seconds, settings.host) == (21, 12.0, "::1")
    origins = {row.name: row.origins for row in read_effective(flags, variables)}
    assert origins["port"] == (Origin("flag", "--port"),)
    assert origins["grace"] == (Origin("variable", "RERANK_GRACE"),)
    assert origins["host"] == origins["rest-host"] == origins["admin-port"] == (Origin("file", path),)
    assert origins["device"] == ()
    # An empty variable is none.
    assert read_settings(flags, {"RERANK_GRACE": ""}).grace_seconds == 2.0


def test_a_repeatable_option_is_replaced_and_never_merged(write: Write):
    path = write('model = ["a=x", "b=y"]\nalias = ["c=a"]\n')
    models = read_settings({"config": path}, {}).models
    assert models == (ModelSpec("a", "x", ("c",)), ModelSpec("b", "y"))
    settings = read_settings({"config": path, "model": ["a=z"]}, {})
    assert settings.models == (ModelSpec("a", "z", ("c",)),)
    assert read_settings({"config": path}, {"RERANK_MODELS": "a=v,d=w"}).models[1:] == (ModelSpec("d", "w"),)


def test_commas_part_nothing_in_a_file(write: Write):
    path = write('model = "a=one,two"\n')
    assert read_settings({"config": path}, {}).models == (ModelSpec("a", "one,two"),)


def test_an_empty_array_is_none_where_none_is_the_default(write: Write):
    assert read_settings({"config": write("alias = []\npin = []\n")}, {}) == ServerSettings()
    assert refusal(write, "model = []") == "model: the array is empty: leave the key out for embedded"


def test_both_servers_take_the_same_file(write: Write):
    path = write('target = ["a:1", "b:2,c:3"]\nport = 5\nrest-port = 7\nmodel = "m=x"\n')
    assert read_rest_settings({"config": path}, {}).targets == ("a:1", "b:2", "c:3")
    assert read_rest_settings({"config": path}, {}).port == read_settings({"config": path}, {}).rest.port == 7
    path = write('rest-port = "off"')
    with pytest.raises(OptionError, match=r"rerank\.toml: rest-port: 'off' leaves nothing to run$"):
        read_rest_settings({"config": path}, {})


def test_the_variable_holds_for_every_command_that_reads_a_servers_settings(tmp_path: Path, write: Write):
    (tmp_path / "tokens").write_text("first\nsecond\n")
    path = write('port = 6000\ntoken-file = "tokens"\ncatalogue = "own.toml"\n')
    variables = {"RERANK_CONFIG": path}
    client = read_client_settings({}, variables)
    assert (client.target, client.token) == ("127.0.0.1:6000", "first")
    assert read_client_settings({}, {**variables, "RERANK_TOKEN": "own"}).token == "own"
    # A server's token goes to no machine that somebody names.
    assert read_client_settings({"target": "far:1"}, variables).token is None
    assert read_catalogue_path({}, variables) == tmp_path / "own.toml"
    assert read_catalogue_path({"catalogue": "mine.toml"}, variables) == Path("mine.toml")


def test_relative_paths_are_the_files_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, elsewhere = tmp_path / "etc", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "tokens").write_text("one\n")
    names = ("./m/bge", "x=../up", "ORG/name", "y=plain/dir", "/z", "..", "w=./a=b")
    (folder / "rerank.toml").write_text(
        f'model = {list(names)}\ntoken-file = "tokens"\nmodels-dir = "here"\ncatalogue = "/own.toml"\n'
    )
    monkeypatch.chdir(elsewhere)
    # As Kubernetes mounts it: the folder of the link counts.
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "rerank.toml").symlink_to(folder / "rerank.toml")
    (tmp_path / "linked" / "tokens").symlink_to(folder / "tokens")
    for path, base in (
        ("../etc/rerank.toml", elsewhere / ".." / "etc"),
        (str(tmp_path / "linked/rerank.toml"), tmp_path / "linked"),
    ):
        settings = read_settings({"config": path}, {})
        assert settings.token_file is not None
        assert settings.token_file.sent == "one"
        assert (settings.models_dir, settings.catalogue) == (base / "here", Path("/own.toml"))
        assert [model.source for model in settings.models] == [
            f"{base}/m/bge",
            f"{base}/../up",
            "ORG/name",
            "plain/dir",
            "/z",
            f"{base}/..",
            f"{base}/a=b",
        ]
        assert [model.name for model in settings.models] == ["bge", "x", "name", "y", "z", "..", "w"]


# What is refused


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prot = 1", r"prot: unknown key; did you mean port\?"),
        ("max_calls = 3", r"max_calls: unknown key; did you mean max-calls\?"),
        ("models = ['x']", r"models: unknown key; did you mean model\?"),
        ("zzz = 1", r"zzz: unknown key; `rerank-grpc config --toml` lists all"),
        ("config = 'x'", "config: unknown key"),
        ("'a\\nb\x1b' = 1".replace("'", '"').replace("\x1b", "\\u001b"), r"'a\\nb\\x1b': unknown key"),
        (f"{'k' * 300} = 1", f"'{'k' * 60}': unknown key"),
        ("[rest]\nport = 1", "rest: a table, and settings have none: write keys such as rest-host by"),
        ("[port]\nx = 1", "port: takes a number or a string, not a table"),
        ("[[model]]\nid = 'x'", "model: takes a string or an array of strings, not a table"),
        ("a.b.c = 1", "a: a table"),
        ("port = true", "port: takes a number or a string, not a boolean"),
        ("rest-port = false", 'rest-port: takes a number or a string, not a boolean: write "off"'),
        ("rest-documents = true", "rest-documents: takes a string, not a boolean"),
        ("port = [1]", "port: takes a number or a string, not an array"),
        ("port = 2020-01-01", "port: takes a number or a string, not a date or a time"),
        ("port = 1.0", r"port: '1\.0' is not a port"),
        ("port = 70000", "port: '70000' is not a port"),
        ("port = -1", "port: '-1' is not a port"),
        (f"port = 0x{'f' * 9_000}", "port: the number is too large"),
        (f"port = {'9' * 5_000}", "not TOML that can be read: a number is too long"),
        ("grace = inf", "grace: 'inf' is not a number of seconds"),
        ("grace = nan", "grace: 'nan' is not a number of seconds"),
        ("model = [1]", "model: takes a string or an array of strings, not a number"),
        ("model = [['x']]", "model: takes a string or an array of strings, not an array"),
        ("host = ''", "host: the string is empty"),
        ('catalogue = "a\\u0000b"', "catalogue: the string is empty or has a NUL"),
        ("precision = 'int4'", r"precision: 'int4' is none of .*; did you mean int8\?"),
        ("pin = 'x'", "pin: no model is named 'x'"),
        ("alias = 'x=embeded'", "alias: x=embeded: no --model is named 'embeded'; did you mean embedded"),
        ("token-file = 'nowhere'", "token-file: cannot read '.*/nowhere': no such file"),
        ("port", r"not TOML: Expected '=' .* \(at the end, line 1\)"),
        ("port = 1\n\nport = 2\n", r"not TOML: Cannot overwrite a value \(at .*line 3"),
        ("port = 1\n= 2\n", r"not TOML: Invalid statement \(at line 2, column 1\)"),
        ("x = " + "[" * 20_000, "not TOML that can be read: it is nested too deeply"),
        ("x = " + "{a=" * 15_000, "not TOML that can be read: it is nested too deeply"),
        ("\n" + "a." * 20_000 + "a = 1", "line 2 has more than 1,000 dots"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_with_the_key(write: Write, text: str, complaint: str):
    message = refusal(write, text)
    assert re.match(complaint, message), message


@pytest.mark.parametrize(
    "key", ["tokens", "token", "access_token", "api-key", "upstream-token", "RERANK_TOKENS"]
)
def test_a_secret_in_a_file_is_refused_and_never_repeated(write: Write, key: str):
    message = refusal(write, f"{key} = ['canary']\n")
    assert (
        message
        == f"{key}: no file of settings holds a secret: name a file by token-file, or set the variable"
    )


@pytest.mark.parametrize(("flags", "variables"), [(True, False), (False, True)], ids=["flag", "variable"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read '{}': no such file or directory: check the path"),
        ("a directory", "cannot read '{}': is a directory where a file is expected: name a file in it"),
        (b"port = 1\n\n# \xff\n", "cannot read '{}': line 3 is not UTF-8"),
        (b"#" * (MOST_BYTES + 1), f"'{{}}' is no file of settings: it has more than {MOST_BYTES:,} bytes"),
        (b"#" * (2 << 20), f"'{{}}' is no file of settings: it has more than {MOST_BYTES:,} bytes"),
    ],
    ids=["missing", "directory", "not UTF-8", "large", "huge"],
)
def test_a_file_that_cannot_be_read_is_told_by_what_names_it(
    tmp_path: Path, content: bytes | str | None, reason: str, flags: bool, variables: bool
):
    path = tmp_path / "rerank.toml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    where = "--config" if flags else "RERANK_CONFIG"
    for read in (read_settings, read_rest_settings, read_effective):
        with pytest.raises(OptionError) as caught:
            read({"config": str(path)} if flags else {}, {"RERANK_CONFIG": str(path)} if variables else {})
        assert str(caught.value) == f"{where}: {reason.format(path)}"


def test_an_endless_file_is_too_large():
    with pytest.raises(OptionError, match="more than"):
        read_settings({"config": "/dev/zero"}, {})


def test_windows_line_ends_and_its_mark_are_read(tmp_path: Path):
    path = tmp_path / "rerank.toml"
    path.write_bytes(b"\xef\xbb\xbfport = 5\r\ngrace = 1.5\r\n")
    settings = read_settings({"config": str(path)}, {})
    assert (settings.port, settings.grace_seconds) == (5, 1.5)


# That it is written as it is read


def written(rows: list[Effective], path: Path) -> str:
    path.write_text("\n".join(write_file(rows)) + "\n", "utf-8")
    return str(path)


@pytest.mark.parametrize("option", ALONE, ids=lambda option: option.name)
def test_each_option_is_written_as_it_is_read(option: Option, tmp_path: Path):
    flags = given_to(option, sample_of(option, tmp_path))
    path = written(read_effective(flags, {}), tmp_path / "out.toml")
    assert read_settings({"config": path}, {}) == read_settings(flags, {})
    (row,) = [row for row in read_effective({"config": path}, {}) if row.name == option.name]
    assert row.origins == (Origin("file", path),)


@pytest.mark.parametrize("option", ALONE_OF_REST, ids=lambda option: option.name)
def test_each_option_of_rest_is_written_as_it_is_read(option: Option, tmp_path: Path):
    text = "7007" if option.name == "rest-port" else sample_of(option, tmp_path)
    flags = given_to(option, text)
    path = written(read_effective(flags, {}, rest=True), tmp_path / "out.toml")
    assert read_rest_settings({"config": path}, {}) == read_rest_settings(flags, {})


def test_the_options_of_rests_tls_are_written_together_as_they_are_read(tmp_path: Path):
    flags: dict[str, str | list[str]] = {}
    for option in REST_OPTIONS:
        if option.name in TOGETHER:
            flags |= given_to(option, sample_of(option, tmp_path))
    path = written(read_effective(flags, {}, rest=True), tmp_path / "out.toml")
    assert read_rest_settings({"config": path}, {}) == read_rest_settings(flags, {})
    assert read_rest_settings(flags, {}).upstream_tls is not None


def test_all_options_together_are_written_as_they_are_read(tmp_path: Path):
    (tmp_path / "there").mkdir()
    flags: dict[str, str | list[str]] = {}
    for option in SERVER_OPTIONS:
        flags |= given_to(option, sample_of(option, tmp_path))
    flags |= {"model": ["embedded", "b=/srv/b"], "lazy-model": ["c=/srv/c"], "host": "0.0.0.0"}
    path = written(read_effective(flags, {}), tmp_path / "there" / "out.toml")
    assert read_settings({"config": path}, {}) == read_settings(flags, {})
    again = written(read_effective({"config": path}, {}), tmp_path / "again.toml")
    assert read_settings({"config": again}, {}) == read_settings(flags, {})


def test_the_defaults_behind_their_marks_are_the_defaults(tmp_path: Path):
    lines = list(write_file(read_effective({}, {})))
    assert not [line for line in lines if line and not line.startswith("#")]
    own = {option.name for option in SERVER_OPTIONS if option.default_text}
    live = [line[1:] for line in lines if re.match(r"#[a-z-]+ = ", line) and line[1:].split(" ")[0] in own]
    assert len(live) == len(own)
    path = tmp_path / "out.toml"
    path.write_text("\n".join(live))
    here = replace(ServerSettings(), models_dir=Path("models").absolute())
    assert read_settings({"config": str(path)}, {}) == here


def test_paths_come_out_absolute_and_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "start").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    flags = {
        "model": ["a=./m", "b=plain"],
        "models-dir": "dir",
        "catalogue": "../own.toml",
        "calibration": ["b=own/b.json"],
    }
    path = written(read_effective(flags, {}), tmp_path / "out.toml")
    monkeypatch.chdir("/")
    settings = read_settings({"config": path}, {})
    assert [model.source for model in settings.models] == [f"{tmp_path}/start/m", "plain"]
    assert settings.models_dir == tmp_path / "start" / "dir"
    assert settings.catalogue == tmp_path / "start" / ".." / "own.toml"
    assert settings.models[1].calibration == tmp_path / "start" / "own" / "b.json"


@pytest.mark.parametrize(
    "text", ['a "b" \\ c', "new\nline", "tab\tDEL\x7f\x1b", "模型 🐼", "a # b = ['c']", "\u2028"]
)
def test_any_text_is_written_as_it_is_read(tmp_path: Path, text: str):
    flags = {"model": [f"m=/{text}"], "models-dir": f"/{text}"}
    path = written(read_effective(flags, {}), tmp_path / "out.toml")
    assert read_settings({"config": path}, {}) == read_settings(flags, {})


def test_a_file_of_any_name_is_told_in_one_comment(tmp_path: Path):
    path = tmp_path / "a\nport = 1\r.toml"
    path.write_text("grace = 5\n")
    lines = list(write_file(read_effective({"config": str(path)}, {})))
    assert not [line for line in lines if "\n" in line or "\r" in line]
    assert (
        read_settings({"config": written(read_effective({"config": str(path)}, {}), tmp_path / "o")}, {}).port
        == 50_051
    )


def test_a_text_that_is_not_utf_8_is_refused():
    with pytest.raises(OptionError, match=r"is not UTF-8, which is all that a TOML file can hold$"):
        list(write_file(read_effective({"models-dir": "/\udcff"}, {})))


def test_tokens_are_counted_and_never_told(tmp_path: Path):
    (tmp_path / "tokens").write_text("canary-f1\ncanary-f2\n")
    environment = {name: f"canary-{name}" for name in SERVER_TOKEN_VARIABLES}
    environment |= {"RERANK_UPSTREAM_TOKEN": "canary-up", "RERANK_TOKEN_FILE": str(tmp_path / "tokens")}
    for rest in (False, True):
        rows = read_effective({}, environment, rest=rest)
        assert "canary" not in str(rows)
        assert "canary" not in "\n".join(write_file(rows))
        tokens = next(row for row in rows if row.name == "tokens")
        assert tokens.texts == ("5 tokens",)
        sources = [
            ("file", str(tmp_path / "tokens")),
            *(("variable", name) for name in SERVER_TOKEN_VARIABLES),
        ]
        assert tokens.origins == tuple(Origin(*source) for source in sources)
    assert rows[-1] == Effective("upstream token", ("set",), (Origin("variable", "RERANK_UPSTREAM_TOKEN"),))
    assert read_effective({}, {}, rest=True)[-1] == Effective("upstream token", (), ())
    assert read_effective({}, {"ACCESS_TOKEN": "canary"})[-1].texts == ("1 token",)


def test_the_example_of_the_page_on_settings_is_one(tmp_path: Path):
    page = (ROOT / "docs/operations/settings.md").read_text("utf-8")
    (text,) = re.findall(r"```toml\n(# /etc/rerank/rerank\.toml\n.*?)```", page, re.DOTALL)
    path = tmp_path / "rerank.toml"
    path.write_text(text)
    given = read_file(str(path), "--config", SERVER_OPTIONS)
    assert given["model"].texts[1] == f"small={tmp_path}/models/bge-reranker-base"
    tokens = tmp_path / "tokens"
    tokens.write_text("one\n")
    settings = read_settings({"config": str(path), "token-file": str(tokens)}, {})
    assert (settings.device, settings.idle_seconds, settings.admin_port) == ("cuda", 600.0, None)
