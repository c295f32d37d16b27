"""The chart's command lines are the server's own: values become its settings and its downloads."""

from __future__ import annotations

import json
from typing import Any

from rerank_grpc.cli.parser import parse
from rerank_grpc.config.options import SERVER_OPTIONS
from tests.deploy.files import read_yaml
from tests.deploy.helm.common import TOKEN, every_file, settings_of
from tests.deploy.kubernetes import CHART, environment_of, pod_of, render, server_of, values_of

DECIDED = {  # by other values than settings
    "model", "alias", "lazy-model", "pin", "calibration", "models-dir", "device", "host", "port",
    "admin-host", "admin-port", "metrics-host", "metrics-port", "rest-host", "rest-port", "token-file",
    "grace", "tls-cert", "tls-key", "tls-client-ca",
}  # fmt: skip


@every_file
def test_the_command_line_is_the_servers_and_its_ports_are_the_containers(rendered, name, tokens):
    server = server_of(rendered[name])
    settings = settings_of(server, tokens)
    ports = {each["name"]: each["containerPort"] for each in server["ports"]}
    assert ports["grpc"] == settings.port
    assert ports["metrics"] == settings.metrics_port
    assert ports.get("rest") == settings.rest.port
    assert {settings.host, settings.metrics_host} == {"0.0.0.0"}
    assert settings.admin_host == ("0.0.0.0" if "admin" in ports else "127.0.0.1")
    assert ports.get("admin", settings.admin_port) == settings.admin_port
    mounted = any(each["mountPath"] == "/run/secrets/rerank" for each in server["volumeMounts"])
    assert (settings.token_file.sent if settings.token_file else None) == (TOKEN if mounted else None)


@every_file
def test_values_become_settings(rendered, name, tokens):
    values, settings = values_of(name), settings_of(server_of(rendered[name]), tokens)
    defaults = read_yaml(CHART / "values.yaml")
    models = values.get("models", defaults["models"])
    # The order too, but for lazy ones, which the server puts last: the first is the default.
    assert settings.models[0].source == models[0]["source"]
    assert {spec.source for spec in settings.models} == {each["source"] for each in models}
    named = {spec.source: spec for spec in settings.models}
    for each in models:
        spec = named[each["source"]]
        assert spec.lazy == each.get("lazy", False)
        assert spec.pinned == each.get("pinned", False)
        assert spec.aliases == tuple(each.get("aliases", ()))
        assert str(spec.calibration) == each.get("calibration", "None")
        assert each.get("name", spec.name) == spec.name
    assert settings.grace_seconds == (defaults["shutdown"] | values.get("shutdown", {}))["graceSeconds"]
    assert settings.device == ("cuda" if values.get("gpu") else "auto")
    for option in SERVER_OPTIONS:
        if option.name in values.get("settings", {}):
            found: Any = settings
            for part in option.setting.split("."):
                found = getattr(found, part)
            given = values["settings"][option.name]
            assert found == (tuple(given) if option.repeatable else option.read(str(given)))


def test_a_model_has_its_calibration():
    models = [{"source": "embedded", "calibration": "/models/own.json"}, {"source": "org/b", "name": "b"}]
    server = server_of(render({"models": models}))
    assert [each for each in server["args"] if "calibration" in each] == [
        "--calibration=embedded=/models/own.json"
    ]


def test_a_bare_off_of_yaml_and_a_large_number_reach_the_server_as_they_are_meant(tokens):
    values = {"settings": {"idle-timeout": False, "max-queue-tokens": 12_000_000, "hang-timeout": 7.5}}
    settings = settings_of(server_of(render(values)), tokens)
    assert (settings.idle_seconds, settings.engine.max_queue_tokens) == (None, 12_000_000)
    assert settings.engine.hang_seconds == 7.5


def test_the_download_names_the_models_with_a_hub_id(rendered):
    (download,) = pod_of(rendered["many-models"])["initContainers"]
    parsed = parse(download["args"])
    assert parsed.command == "download"
    assert parsed.models == ["BAAI/bge-reranker-base@main", "cross-encoder/ms-marco-MiniLM-L-6-v2"]
    server = server_of(rendered["many-models"])
    for name in ("HOME", "HF_HOME", "HF_ENDPOINT"):
        assert environment_of(download)[name] == environment_of(server)[name]
    assert [each["mountPath"] for each in download["volumeMounts"]] == ["/models", "/tmp"]


def test_directories_and_the_embedded_model_are_not_downloaded():
    sources = ["embedded", "/models/own", "bge-reranker-base"]
    values = {"models": [{"source": each} for each in sources], "download": {"enabled": True}}
    (download,) = pod_of(render(values))["initContainers"]
    assert parse(download["args"]).models == ["bge-reranker-base"]


def test_settings_of_the_schema_are_the_servers_options():
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    told = set(schema["properties"]["settings"]["properties"])
    assert told == {option.name for option in SERVER_OPTIONS} - DECIDED
