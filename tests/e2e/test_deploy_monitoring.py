"""deploy/prometheus and deploy/grafana: right to their checkers, true about what is exported.

Prometheus is Debian's package. Grafana is not in Debian: of its dashboard the queries are run.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import grpc
import promql_parser
import pytest
import yaml

from deploy_facts import DEPLOY, documented_metrics, exported_metrics, family, help_of
from harness import REPO, Client, wait_until

PROMETHEUS = DEPLOY / "prometheus"
RULES = PROMETHEUS / "rules.yml"
RULES_TEST = REPO / "tests" / "data" / "prometheus" / "rules_test.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "osdn-server.json"
ALLOWED_LABELS = {
    "instance",
    "job",
    "alertname",
    "alertstate",
    "method",
    "code",
    "reason",
    "tier",
    "phase",
    "le",
    "version",
    "model",
    "backend",
}


def alerts() -> dict[str, dict]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def dashboard_queries() -> list[str]:
    """The dashboard's queries as Grafana would send them."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    return [q.replace("$__rate_interval", "1m").replace("$instance", ".*") for q in queries]


def selectors(node) -> list:
    """All vector selectors of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        return [node]
    found = []
    for name in ("vector_selector", "expr", "lhs", "rhs"):
        if hasattr(node, name):
            found += selectors(getattr(node, name))
    for argument in getattr(node, "args", None) or []:
        found += selectors(argument)
    return found


def promtool(*arguments: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_config_and_rules():
    assert f"{len(alerts())} rules found" in promtool(
        "check", "config", PROMETHEUS / "prometheus.yml"
    )


def test_alerts_fire_on_their_trouble_and_only_then(tmp_path):
    shutil.copy(RULES, tmp_path)
    shutil.copy(RULES_TEST, tmp_path)
    promtool("test", "rules", RULES_TEST.name, cwd=tmp_path)
    fired = set(re.findall(r'alertname="(\w+)"', RULES_TEST.read_text()))
    assert fired == set(alerts())


@pytest.mark.parametrize(
    "query",
    [
        *(pytest.param(rule["expr"], id=name) for name, rule in alerts().items()),
        *(pytest.param(query, id=f"panel-{i}") for i, query in enumerate(dashboard_queries())),
    ],
)
def test_queries_name_metrics_that_are_exported_and_documented(query):
    known = {"up"} | (exported_metrics() & documented_metrics())
    used = selectors(promql_parser.parse(query))
    assert used, query
    for selector in used:
        assert family(selector.name) in known, query
        assert {matcher.name for matcher in selector.matchers.matchers} <= ALLOWED_LABELS, query


def test_every_documented_metric_is_exported_and_the_other_way_round():
    assert documented_metrics() == exported_metrics()


def test_operations_guide_explains_every_alert_and_names_real_options():
    guide = (REPO / "docs" / "operations.md").read_text()
    assert set(re.findall(r"^\| `(Osdn\w+)` \|", guide, re.MULTILINE)) == set(alerts())
    options = set(re.findall(r"\[([a-z_.]+);", help_of("osdn-server")))
    sections = {option.partition(".")[0] for option in options if "." in option}
    named = {
        name
        for name in re.findall(r"`([a-z_]+\.[a-z_.]+)", guide)
        if name.partition(".")[0] in sections
    }
    assert named and named <= options


def test_dashboard_is_provisioned():
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    used = {target["datasource"]["uid"] for panel in panels for target in panel["targets"]}
    assert used == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "osdn.yaml").read_text())[
        "providers"
    ]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    boxes = [panel["gridPos"] for panel in panels]
    cells = [
        (x, y)
        for b in boxes
        for x in range(b["x"], b["x"] + b["w"])
        for y in range(b["y"], b["y"] + b["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"


class Prometheus:
    """Debian's Prometheus with the config of deploy/, pointed at one server."""

    def __init__(self, target: str, folder: Path) -> None:
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {
            "scrape_interval": "250ms",
            "scrape_timeout": "250ms",
            "evaluation_interval": "500ms",
        }
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(RULES, folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.log = (folder / "prometheus.log").open("w+")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={self.address}",
            ],
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def get(self, path: str, **parameters: str):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def target(self) -> dict | None:
        assert self.process.poll() is None, Path(self.log.name).read_text()
        try:
            targets = self.get("targets", state="active")["activeTargets"]
        except OSError:
            return None  # still starting
        return next((target for target in targets if target["health"] == "up"), None)

    def query(self, text: str) -> list:
        return self.get("query", query=text)["result"]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def make_traffic(server) -> None:
    """Completions, some of which find the queue full."""
    client = Client(server.channel())

    def ask(_) -> grpc.StatusCode:
        try:
            client.stream([1, 2, 3], max_tokens=64, ignore_eos=True)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        codes = set(pool.map(ask, range(48)))
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}, codes


def test_prometheus_reads_a_running_server(tiny_model, servers, tmp_path):
    server = servers(tiny_model, "--max-slots", "1", "--max-queued-requests", "1")
    prometheus = Prometheus(server.http_address, tmp_path)
    try:
        wait_until(prometheus.target, "the target is up")
        queries = dashboard_queries()

        def all_have_data() -> bool:
            make_traffic(server)
            return all(prometheus.query(query) for query in queries)

        try:
            wait_until(all_have_data, "every panel has data", timeout=20)
        except TimeoutError:
            pytest.fail(f"no data: {[q for q in queries if not prometheus.query(q)]}")
        (group,) = prometheus.get("rules", type="alert")["groups"]
        rules = {rule["name"]: rule for rule in group["rules"]}
        assert set(rules) == set(alerts())
        assert {rule["health"] for rule in rules.values()} == {"ok"}
        assert prometheus.query(alerts()["OsdnQueueFull"]["expr"]), "the one trouble that there is"
        for name, rule in alerts().items():
            for selector in selectors(promql_parser.parse(rule["expr"])):
                # Without its labels: not every trouble has happened.
                assert prometheus.query(selector.name), f"{name}: {selector.name}"
        exported = {
            family(s["__name__"])
            for s in prometheus.get("series", **{"match[]": '{__name__=~"osdn_.+"}'})
        }
        assert exported == documented_metrics()
    finally:
        prometheus.stop()
