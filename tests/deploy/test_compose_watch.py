"""compose.watch.yaml: pinned images, ports of this machine, files that lie where they are looked for."""

from __future__ import annotations

import re

from rerank_grpc.config.settings import ServerSettings
from tests.deploy.files import GRAFANA, PROMETHEUS, ROOT, read_yaml

SERVICES = read_yaml(ROOT / "compose.watch.yaml")["services"]


def mounts(service):
    """Returns where each file of this repository lies in a container."""
    files = [mount.split(":") for mount in service["volumes"] if mount.startswith("./")]
    assert all(mode == "ro" for _, _, mode in files)
    return {ROOT / source: target for source, target, _ in files}


def test_it_adds_services_and_changes_none():
    assert set(SERVICES) == {"prometheus", "grafana"}


def test_images_are_pinned_by_name_and_version():
    for service in SERVICES.values():
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])


def test_ports_are_open_to_this_machine_alone():
    for service in SERVICES.values():
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service["ports"])


def test_prometheus_reaches_the_server_at_its_metrics_port():
    (name,) = read_yaml(ROOT / "compose.yaml")["services"]
    (job,) = read_yaml(PROMETHEUS / "prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{name}:{ServerSettings().metrics_port}"]}]


def test_the_files_lie_where_prometheus_and_grafana_look():
    files = mounts(SERVICES["prometheus"])
    assert files == {PROMETHEUS / name: f"/etc/prometheus/{name}" for name in ("prometheus.yml", "rules.yml")}
    assert all(path.is_file() for path in files)
    files = mounts(SERVICES["grafana"])
    assert all(path.is_file() for path in files)
    assert files[GRAFANA / "datasource.yml"].startswith("/etc/grafana/provisioning/datasources/")
    assert files[GRAFANA / "dashboards.yml"].startswith("/etc/grafana/provisioning/dashboards/")
    (provider,) = read_yaml(GRAFANA / "dashboards.yml")["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert files[GRAFANA / "rerank.json"] == home == f"{provider['options']['path']}/rerank.json"
    (source,) = read_yaml(GRAFANA / "datasource.yml")["datasources"]
    published = SERVICES["prometheus"]["ports"][0].rpartition(":")[2]
    assert source["url"] == f"http://prometheus:{published}"
