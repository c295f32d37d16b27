"""Flags and environment become settings, or are refused by name."""

import inspect
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rerank_grpc import config
from rerank_grpc.access.tokens import TokenFile
from rerank_grpc.config.options import CLIENT_OPTIONS, REST_OPTIONS, SERVER_OPTIONS, OptionError
from rerank_grpc.config.reading import (
    mask_kernels,
    may_color,
    provide_temporary_folder,
    read_client_settings,
    read_kernels,
    read_rest_settings,
    read_settings,
)
from rerank_grpc.config.settings import (
    EMBEDDED,
    ClientSettings,
    EngineSettings,
    ModelSpec,
    RestSettings,
    ServerSettings,
    token_count,
)

SAMPLES = {
    "model": ("bge=/srv/bge", ("bge", "/srv/bge")),
    "alias": ("tiny=embedded", None),
    "lazy-model": ("bge=/srv/bge", None),
    "pin": ("embedded", None),
    "calibration": ("embedded=/srv/own.json", None),
    "models-dir": ("/srv", Path("/srv")),
    "catalogue": ("own.toml", Path("own.toml")),
    "model-memory": ("1.5GiB", 3 << 29),
    "idle-timeout": ("60", 60.0),
    "device": ("cuda:1", "cuda:1"),
    "precision": ("bf16", "bf16"),
    "kernels": ("none", "none"),
    "host": ("::1", "::1"),
    "port": ("0", 0),
    "admin-host": ("0.0.0.0", "0.0.0.0"),
    "admin-port": ("off", None),
    "metrics-host": ("0.0.0.0", "0.0.0.0"),
    "metrics-port": ("off", None),
    "grace": ("1.5", 1.5),
    "connection-age": ("60", 60.0),
    "max-batch-tokens": ("8192", 8192),
    "max-queue-tokens": ("1000", 1000),
    "max-calls": ("7", 7),
    "blank-documents": ("last", "last"),
    "reflection": ("open", "open"),
    "hang-timeout": ("9", 9.0),
    "log-level": ("debug", "debug"),
    "log-format": ("json", "json"),
    "rest-host": ("0.0.0.0", "0.0.0.0"),
    "rest-port": ("off", None),
    "rest-timeout": ("7.5", 7.5),
    "rest-keep-alive": ("7.5", 7.5),
    "rest-documents": ("asked", "asked"),
    "rest-cors": ("https://a.example", ("https://a.example",)),
}


ECHO_KERNELS = "import os; print(os.environ['RERANK_KERNELS'], end='')"


def setting(settings, path):
    for part in path.split("."):
        settings = getattr(settings, part)
    return settings


def test_nothing_given_means_the_defaults():
    assert read_settings({}, {}) == ServerSettings()
    assert read_client_settings({}, {}) == ClientSettings()


@pytest.mark.parametrize("option", SERVER_OPTIONS, ids=lambda option: option.name)
def test_flag_and_variable_mean_the_same_and_the_flag_wins(option, tmp_path):
    if option.name.startswith("tls-"):
        pytest.skip("the files of TLS are given together: see tests/tls/test_tls_settings.py")
    if option.name == "token-file":
        tokens = tmp_path / "tokens"
        tokens.write_text("one\n\ntwo\n")
        text = str(tokens)
    else:
        text, expected = SAMPLES[option.name]
    flag = [text] if option.repeatable else text
    by_flag = read_settings({option.name: flag}, {})
    by_variable = read_settings({}, {option.variable: text})
    assert by_flag == by_variable != ServerSettings()
    assert read_settings({option.name: flag}, {option.variable: "=not valid="}) == by_flag
    if option.name == "token-file":
        assert in_clear(by_flag.token_file) == ["one", "two"]
    elif option.name == "model":
        assert isinstance(expected, tuple)
        assert by_flag.models == (ModelSpec(*expected),)
    elif option.name == "alias":
        assert by_flag.models == (ModelSpec("embedded", "embedded", ("tiny",)),)
    elif option.name == "lazy-model":
        assert by_flag.models == (EMBEDDED, ModelSpec("bge", "/srv/bge", lazy=True))
    elif option.name == "pin":
        assert by_flag.models == (ModelSpec("embedded", "embedded", pinned=True),)
    elif option.name == "calibration":
        assert by_flag.models == (ModelSpec("embedded", "embedded", calibration=Path("/srv/own.json")),)
    else:
        assert setting(by_flag, option.setting) == expected


def test_lazy_and_pinned_models_are_models():
    flags = {"model": ["one=a"], "lazy-model": ["two=b", "org/three@v1"], "pin": ["two"]}
    assert read_settings(flags, {}).models == (
        ModelSpec("one", "a"),
        ModelSpec("two", "b", lazy=True, pinned=True),
        ModelSpec("three", "org/three@v1", lazy=True),
    )
    with pytest.raises(OptionError, match=r"^--pin: no model is named 'tow'; did you mean two\?"):
        read_settings(flags | {"pin": ["tow"]}, {})


def test_every_setting_of_the_server_has_an_option():
    names = {option.setting for option in SERVER_OPTIONS}
    assert set(ServerSettings.__slots__) - {"engine", "rest", "access_tokens", "tls"} <= names
    assert {f"tls_{name}" for name in ("cert", "key", "client_ca")} <= names
    assert {f"engine.{name}" for name in EngineSettings.__slots__} <= names
    rest = {option.setting.removeprefix("rest.").partition(".")[0] for option in REST_OPTIONS}
    own = rest - {"tls_cert", "tls_key", "tls_client_ca"}
    assert set(RestSettings.__slots__) - {"upstream_token", "access_tokens", "tls"} == own


def test_rest_listens_where_grpc_does_unless_told_otherwise():
    assert read_settings({"host": "0.0.0.0"}, {}).rest.host == "0.0.0.0"
    assert read_settings({"host": "0.0.0.0", "rest-host": "127.0.0.1"}, {}).rest.host == "127.0.0.1"


def test_the_rest_server_alone_reads_its_own_settings():
    assert read_rest_settings({}, {}) == RestSettings()
    variables = {
        "RERANK_TARGET": "a:1,b:2",
        "RERANK_TOKENS": "t1,t2",
        "RERANK_UPSTREAM_TOKEN": "own",
        "RERANK_REST_PORT": "0",
    }
    settings = read_rest_settings({}, variables)
    assert (settings.targets, settings.access_tokens) == (("a:1", "b:2"), ("t1", "t2"))
    assert (settings.upstream_token, settings.port) == ("own", 0)
    assert read_rest_settings({"target": ["c:3,d:4", "e:5"]}, variables).targets == ("c:3", "d:4", "e:5")
    assert "own" not in repr(settings)
    for flags, environment in (({"rest-port": "off"}, {}), ({}, {"RERANK_UPSTREAM_TOKEN": "two words"})):
        with pytest.raises(OptionError):
            read_rest_settings(flags, environment)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "abc"),
        ("port", "65536"),
        ("port", "-1"),
        ("port", "٣"),
        ("admin-port", "none"),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("precision", "int4"),
        ("grace", "0"),
        ("grace", "nan"),
        ("grace", "1e9"),
        ("grace", "soon"),
        ("max-batch-tokens", "0"),
        ("max-batch-tokens", "4k"),
        ("host", " "),
        ("host", "unix:rerank.sock"),
        ("rest-host", "/run/rerank.sock"),
        ("log-level", "verbose"),
        ("model", "=dir"),
        ("model", "a="),
        ("model", "/"),
        ("model", "a b=dir"),
        ("alias", "a"),
        ("alias", "a="),
        ("lazy-model", "a="),
        ("pin", " "),
        *(("calibration", text) for text in ("a", "a=", "=own.json")),
        ("model-memory", "20"),
        ("model-memory", "0GiB"),
        ("model-memory", "lots"),
        ("idle-timeout", "0"),
        *(("rest-cors", text) for text in ("app.example", "https://a.example/", "https://A.example", "null")),
        *(("rest-cors", text) for text in ("https://*.a.example", "https://", "a b")),
    ],
)
def test_a_bad_value_is_refused_by_the_name_it_came_under(name, text):
    option = next(option for option in SERVER_OPTIONS if option.name == name)
    with pytest.raises(OptionError, match=f"^--{name}: .*{re.escape(text)}"):
        read_settings({name: [text] if option.repeatable else text}, {})
    with pytest.raises(OptionError, match=f"^{option.variable}: "):
        read_settings({}, {option.variable: text})


def test_an_empty_variable_counts_as_unset():
    empty = {option.variable: "" for option in (*SERVER_OPTIONS, *CLIENT_OPTIONS)}
    empty |= {"RERANK_TOKENS": "", "ACCESS_TOKEN": "", "RERANK_API_KEY": "", "RERANK_TOKEN": ""}
    assert read_settings({}, empty) == ServerSettings()
    assert read_client_settings({}, empty) == ClientSettings()


def test_an_unknown_variable_is_refused_with_the_nearest_name():
    with pytest.raises(OptionError, match=r"^RERANK_PRECISON: unknown .*; did you mean RERANK_PRECISION\?$"):
        read_settings({}, {"RERANK_PRECISON": "fp32"})
    with pytest.raises(OptionError, match="enableServiceLinks"):
        read_settings({}, {"RERANK_PORT_50051_TCP_ADDR": "10.0.0.1"})
    assert read_settings({}, {"RERANKER": "x", "HOME": "/"}) == ServerSettings()


def test_either_side_knows_the_other_sides_variables():
    assert read_settings({}, {"RERANK_TARGET": "x:1", "RERANK_TOKEN": "t"}) == ServerSettings()
    assert read_client_settings({}, {"RERANK_DEVICE": "cpu"}) == ClientSettings()


def test_models_are_named_by_their_last_part_unless_named():
    texts = ["BAAI/bge-reranker-v2-m3", "x=models/y/", "./here/z/", "embedded"]
    models = read_settings({"model": texts}, {}).models
    assert [(model.name, model.source) for model in models] == [
        ("bge-reranker-v2-m3", "BAAI/bge-reranker-v2-m3"),
        ("x", "models/y/"),
        ("z", "./here/z/"),
        ("embedded", "embedded"),
    ]
    assert read_settings({}, {"RERANK_MODELS": ",".join(texts)}).models == models


def test_aliases_belong_to_one_model_and_names_are_unique():
    settings = read_settings({"model": ["a=x", "b=y"], "alias": ["ORG/b=b", "c=a", "d=b"]}, {})
    assert [model.aliases for model in settings.models] == [("c",), ("ORG/b", "d")]
    with pytest.raises(OptionError, match=r"no --model is named 'embeded'; did you mean embedded\?"):
        read_settings({"alias": ["x=embeded"]}, {})
    for flags in ({"model": ["*=x"]}, {"model": ["a=x"], "alias": ["a*=a"]}, {"alias": ["**=embedded"]}):
        with pytest.raises(OptionError, match=r"is not (NAME=DIR_OR_HUB_ID|ALIAS=NAME, nor \*=NAME)"):
            read_settings(flags, {})
    with pytest.raises(OptionError, match=r"the name '\*' is given twice"):
        read_settings({"model": ["a=x", "b=y"], "alias": ["*=a", "*=b"]}, {})
    for flags in ({"model": ["a=x", "a=y"]}, {"model": ["a=x", "b=y"], "alias": ["a=b"]}):
        with pytest.raises(OptionError, match="'a' is given twice"):
            read_settings(flags, {})


def test_a_calibration_belongs_to_one_model():
    flags = {"model": ["a=x", "b=y"], "lazy-model": ["c=z"], "calibration": ["c=c=1.json", "a=a.json"]}
    models = read_settings(flags, {}).models
    assert [model.calibration for model in models] == [Path("a.json"), None, Path("c=1.json")]
    text = r"^--calibration: aa=a.json: no --model is named 'aa'; did you mean a\?"
    with pytest.raises(OptionError, match=text):
        read_settings(flags | {"calibration": ["aa=a.json"]}, {})
    with pytest.raises(
        OptionError, match=r"^--calibration: the model 'a' is given two files: a\.json, b\.json$"
    ):
        read_settings(flags | {"calibration": ["a=a.json", "a=b.json"]}, {})
    assert read_settings(flags | {"calibration": ["a=a.json", "a=a.json"]}, {}).models[0].calibration


def in_clear(file: TokenFile | None) -> list[str]:
    """Lists the tokens that a file has in clear, in its order."""
    assert file is not None
    return [token for entry in file.entries for token in entry.tokens]


def test_all_tokens_are_accepted_together(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("f1\nf2\nt2\n")
    environment = {"RERANK_TOKENS": "t1, t2", "ACCESS_TOKEN": "a", "RERANK_API_KEY": "t1"}
    settings = read_settings({"token-file": str(file)}, environment)
    assert settings.access_tokens == ("t1", "t2", "a")
    assert in_clear(settings.token_file) == ["f1", "f2", "t2"]
    assert token_count(settings) == 5
    assert not re.search("t1|f1", repr(settings))


@pytest.mark.parametrize("name", ["RERANK_TOKENS", "ACCESS_TOKEN", "RERANK_API_KEY"])
@pytest.mark.parametrize("text", [" ", "canary ü", "canary x"])
def test_a_bad_token_is_refused_and_never_repeated(name, text):
    with pytest.raises(OptionError, match=f"^{name}: ") as caught:
        read_settings({}, {name: text})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff", b"canary x\n"])
def test_a_bad_token_file_is_refused(tmp_path, content):
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)
    for read in (read_settings, read_client_settings):
        with pytest.raises(OptionError, match=r"^--token-file") as caught:
            read({"token-file": str(file)}, {})
        assert "canary" not in str(caught.value)


def test_a_token_file_without_end_is_refused_before_it_is_read_whole():
    with pytest.raises(
        OptionError, match=r"^--token-file: '/dev/zero' is no file of tokens: it has more than"
    ):
        read_settings({"token-file": "/dev/zero"}, {})


def test_a_system_without_a_temporary_folder_has_one_in_shared_memory(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/proc")
    for name in ("TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    provide_temporary_folder()
    assert os.environ["TMPDIR"] == "/proc", "another folder can be written to, and is taken"
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    provide_temporary_folder()
    assert os.environ["TMPDIR"] == "/dev/shm"


def test_the_kernels_that_are_allowed_hold_for_the_whole_process(monkeypatch):
    monkeypatch.setenv("RERANK_KERNELS", "auto")
    mask_kernels("none")
    assert read_kernels() == "none"
    assert subprocess.check_output([sys.executable, "-c", ECHO_KERNELS], text=True) == "none"


def test_a_terminal_keeps_its_colours_unless_the_environment_takes_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert may_color()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not may_color()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not may_color()


def test_a_token_file_may_be_a_pipe(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"one\n")
    os.close(writing)
    settings = read_settings({"token-file": f"/dev/fd/{reading}"}, {})
    os.close(reading)
    assert in_clear(settings.token_file) == ["one"]


def test_the_token_for_the_targets_comes_from_a_file_or_a_variable(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("first\nsecond\n")
    settings = read_rest_settings({"upstream-token-file": str(file)}, {"RERANK_UPSTREAM_TOKEN": "own"})
    assert in_clear(settings.upstream_token_file) == ["first", "second"]
    assert settings.upstream_token == "own"


def test_a_check_that_needs_no_token_does_without_one_that_cannot_be_read(tmp_path):
    file = tmp_path / "tokens"
    for environment in ({"RERANK_TOKEN_FILE": str(file)}, {"RERANK_TOKENS": "two words"}):
        with pytest.raises(OptionError):
            read_client_settings({}, environment)
        assert read_client_settings({}, environment, needs_token=False) == ClientSettings()
    with pytest.raises(OptionError, match=r"^--token-file"):
        read_client_settings({"token-file": str(file)}, {}, needs_token=False)


def test_the_client_without_a_target_means_this_machines_server():
    server = {"RERANK_PORT": "6000", "RERANK_TOKENS": "s1,s2"}
    assert read_client_settings({}, server) == ClientSettings("127.0.0.1:6000", "s1")
    own = read_client_settings({}, {**server, "RERANK_TOKEN": "c"})
    assert own == ClientSettings("127.0.0.1:6000", "c")
    # A server's token goes to no machine that somebody names.
    for flags, environment in (({"target": "far:1"}, server), ({}, {**server, "RERANK_TARGET": "far:1"})):
        assert read_client_settings(flags, environment) == ClientSettings("far:1", None)


@pytest.mark.parametrize(
    ("options", "read"),
    [
        (SERVER_OPTIONS, read_settings),
        (REST_OPTIONS, read_rest_settings),
        (CLIENT_OPTIONS, read_client_settings),
    ],
    ids=["serve", "rest", "client"],
)
def test_defaults_are_said_as_one_would_type_them(options, read):
    for option in options:
        text = option.default_text
        if text:
            assert read({option.name: [text] if option.repeatable else text}, {}) == read({}, {})
    assert {option.name for option in options if not option.default_text} <= {
        *(
            "alias",
            "lazy-model",
            "pin",
            "calibration",
            "catalogue",
            "token-file",
            "rest-cors",
            "upstream-token-file",
        ),
        *(f"{of}{name}" for of in ("", "upstream-") for name in ("ca", "cert", "key", "server-name")),
        *("tls-cert", "tls-key", "tls-client-ca"),
    }


@pytest.mark.parametrize("name", ["call-cpu", "connection-age-grace", "rest-data", "rest-fastgpt"])
def test_an_option_of_the_past_is_refused_by_name(name):
    variable = f"RERANK_{name.upper().replace('-', '_')}"
    with pytest.raises(OptionError, match=f"^{variable}: unknown environment variable"):
        read_settings({}, {variable: "5"})


def test_two_modules_alone_read_the_environment():
    package = Path(inspect.getfile(config)).parent.parent
    readers = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"os\.environ|os\.getenv|from os import", path.read_text())
    ]
    assert sorted(readers) == ["config/environment.py", "config/reading.py"]


def callers(tmp_path: Path, text: str) -> str:
    """Writes a file of callers; returns its path."""
    path = tmp_path / "callers.toml"
    path.write_text(text)
    return str(path)


def test_the_models_of_a_caller_are_those_that_are_served_by_name_or_alias(tmp_path):
    path = callers(tmp_path, '[a]\ntoken = "x"\nmodels = ["tiny", "embedded"]\n')
    models = {"model": ["embedded", "other=dir"], "alias": ["tiny=other", "*=other"]}
    settings = read_settings({**models, "token-file": path}, {})
    assert settings.token_file is not None
    assert settings.token_file.entries[0].caller.models == frozenset({"other", "embedded"})
    with pytest.raises(OptionError) as caught:
        read_settings({"token-file": path}, {})
    assert str(caught.value) == (
        f"--token-file: {path!r} is no file of tokens: line 3: [a] models: no model is named 'tiny': "
        "there are embedded"
    )
    # REST in front of other servers knows no models.
    alone = read_rest_settings({"token-file": path}, {})
    assert alone.token_file is not None
    assert alone.token_file.entries[0].caller.models == frozenset({"tiny", "embedded"})


def test_a_token_that_a_variable_gives_every_right_may_not_stand_in_a_table(tmp_path):
    path = callers(tmp_path, '[a]\ntoken = "canary"\n')
    with pytest.raises(OptionError, match=r"line 2: \[a\] token: .* one in the server's variables") as caught:
        read_settings({"token-file": path}, {"RERANK_TOKENS": "canary"})
    assert "canary" not in str(caught.value)


def test_a_client_sends_a_token_in_clear_and_no_digest(tmp_path):
    clear = callers(tmp_path, '[a]\nsha256 = "' + "0" * 64 + '"\n[b]\ntoken = "sent"\n')
    assert read_client_settings({"token-file": clear, "target": "host:1"}, {}).token == "sent"
    hashed = callers(tmp_path, '[a]\nsha256 = "' + "0" * 64 + '"\n')
    for read, option in ((read_client_settings, "token-file"), (read_rest_settings, "upstream-token-file")):
        with pytest.raises(OptionError, match=f"^--{option}: .* holds no token that could be sent"):
            read({option: hashed}, {})
    # The health check of a server with digests alone does without.
    assert read_client_settings({}, {"RERANK_TOKEN_FILE": hashed}).token is None
    both = {"RERANK_TOKEN_FILE": hashed, "RERANK_TOKEN": "own"}
    assert read_client_settings({}, both).token == "own"
