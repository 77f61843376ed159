"""deploy/kubernetes: valid to Kubernetes' own schemas, and true about the programs.

kustomize is not at hand: kustomize.py renders what these overlays use. ServiceMonitor belongs to
an operator, so its shape is checked here.
"""

from __future__ import annotations

import re
import socket
import ssl
import subprocess

import kubernetes_validate
import pytest
import yaml

from deploy_facts import DEPLOY, documented_metrics, exported_metrics, flags_of
from harness import BUNDLED_MODEL, run_server, run_tools, wait_until
from kustomize import load_all, render

KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
# The oldest version meant, and the newest whose schemas the validator brings.
VERSIONS = ["1.29", "1.37"]


@pytest.fixture(scope="module", params=OVERLAYS)
def resources(request) -> list[dict]:
    return render(KUBERNETES / "overlays" / request.param)


def only(resources: list[dict], kind: str, name: str | None = None) -> dict:
    (found,) = [r for r in resources if r["kind"] == kind and name in (None, r["metadata"]["name"])]
    return found


def workload(resources: list[dict]) -> dict:
    (found,) = [r for r in resources if r["kind"] in ("Deployment", "StatefulSet")]
    return found


def pod_of(resources: list[dict]) -> dict:
    return workload(resources)["spec"]["template"]["spec"]


def container_of(resources: list[dict]) -> dict:
    (container,) = pod_of(resources)["containers"]
    return container


def config_of(resources: list[dict]) -> dict:
    return yaml.safe_load(only(resources, "ConfigMap")["data"]["server.yaml"])


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def test_there_are_overlays():
    assert {"cpu", "cuda", "redis", "sessions"} <= set(OVERLAYS)


@pytest.mark.parametrize("version", VERSIONS)
def test_valid_to_the_schemas(resources, version):
    for resource in resources:
        if resource["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(resource, version, strict=True)


def test_server_takes_the_config_and_every_flag(resources, tmp_path):
    container = container_of(resources)
    assert container["command"] == ["osdn-server"]
    (tmp_path / "server.yaml").write_text(only(resources, "ConfigMap")["data"]["server.yaml"])
    args = [
        str(tmp_path / "server.yaml") if a == "/etc/osdn/server/server.yaml" else a
        for a in container["args"]
    ]
    done = run_server(*args, "--check-config")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "auth.keys_file = /etc/osdn/keys/keys.yaml (file)" in done.stdout


def test_files_lie_in_mounted_volumes(resources):
    pod, container = pod_of(resources), container_of(resources)
    config = config_of(resources)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    # A PVC of a StatefulSet is a volume too.
    claims = workload(resources)["spec"].get("volumeClaimTemplates", [])
    volumes = {v["name"] for v in pod["volumes"]} | {c["metadata"]["name"] for c in claims}
    assert {mount["name"] for mount in mounts.values()} == volumes
    paths = [config["model"], config["auth"]["keys_file"]]
    paths += [arg.split("=")[1] for arg in container["args"] if "=/" in arg]
    paths += [
        arg
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        for arg in container[probe].get("exec", {}).get("command", [])
        if arg.startswith("/")
    ]
    for path in paths:
        assert any(f"{path}/".startswith(f"{mount}/") for mount in mounts), path
    written = [a.split("=")[1] for a in container["args"] if a.startswith("--state-dir=")]
    for path, mount in mounts.items():
        assert mount.get("readOnly", False) != any(
            f"{w}/".startswith(f"{path}/") for w in written
        ), path


def test_ports_agree(resources):
    container, config = container_of(resources), config_of(resources)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        side: int(config[side]["address"].rpartition(":")[2]) for side in ("grpc", "http")
    }
    for service in (r for r in resources if r["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["targetPort"]]
    for rule in only(resources, "NetworkPolicy")["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= set(ports)
    assert only(resources, "Service", "osdn-server-grpc")["spec"]["clusterIP"] == "None"


def test_probes_are_health_calls_that_fit_the_transport(resources):
    container = container_of(resources)
    encrypted = any(arg.startswith("--tls-cert-file=") for arg in container["args"])
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]
        if encrypted:
            command = probe["exec"]["command"]
            assert command[:2] == ["osdn-tools", "health"]
            given = {arg for arg in command if arg.startswith("--")}
            assert {"--address", "--tls-ca"} <= given <= flags_of("osdn-tools", "health")
        else:
            assert probe["grpc"] == {"port": 50051}
    assert encrypted == ("--insecure=false" in container["args"])


def test_probes_and_scraping_by_tls_work(tiny_model, servers, tmp_path):
    """The commands of components/tls and the ServiceMonitor's scheme on a server with its flags."""
    component = KUBERNETES / "components" / "tls"
    (operations,) = load_all(component / "server.yaml")
    (monitor,) = load_all(component / "servicemonitor.yaml")
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    kind = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=osdn-server"
    names = ["-addext", "subjectAltName=DNS:osdn-server,DNS:localhost"]
    subprocess.run(
        ["openssl", *kind.split(), "-keyout", key, "-out", cert, *names],
        check=True,
        capture_output=True,
    )

    def here(text: str) -> str:
        own = text.replace("/etc/osdn/tls/ca.crt", str(cert))  # signed by itself
        return own.replace("/etc/osdn/tls", str(tmp_path))

    flags = [here(o["value"]) for o in operations if o["path"].endswith("/args/-")]
    server = servers(tiny_model, *flags, serving=False)
    port = server.address.rpartition(":")[2]
    (probe,) = [o["value"] for o in operations if o["path"].endswith("/readinessProbe")]
    program, *command = [here(a).replace("50051", port) for a in probe["exec"]["command"]]
    assert program == "osdn-tools"
    wait_until(lambda: run_tools(*command, check=False).stdout == "SERVING\n", "health by TLS")
    settings = {o["path"].rpartition("/")[2]: o["value"] for o in monitor}
    assert settings["scheme"] == "https"
    context = ssl.create_default_context(cafile=cert)
    host, _, port = server.http_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        name = settings["tlsConfig"]["serverName"]
        with context.wrap_socket(plain, server_hostname=name) as encrypted:
            encrypted.sendall(b"GET /metrics HTTP/1.1\r\nHost: osdn-server\r\n\r\n")
            assert encrypted.recv(100).startswith(b"HTTP/1.1 200")


def test_grace_period_is_longer_than_the_drain(resources):
    drain = config_of(resources)["drain"]
    spare = 10  # to save states and to end
    assert (
        pod_of(resources)["terminationGracePeriodSeconds"]
        >= seconds(drain["propagation"]) + seconds(drain["timeout"]) + spare
    )


def test_hardened(resources):
    pod = pod_of(resources)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert f"USER {pod['securityContext']['runAsUser']}" in dockerfile
    for container in pod["containers"] + pod.get("initContainers", []):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]["memory"]
        assert container["resources"]["limits"]["memory"]


def test_threads_are_the_cpus_asked_for(resources):
    container = container_of(resources)
    threads = [a.split("=")[1] for a in container["args"] if a.startswith("--threads=")]
    if threads:
        assert threads == [container["resources"]["requests"]["cpu"]]


def test_selectors_find_the_pods(resources):
    labels = workload(resources)["spec"]["template"]["metadata"]["labels"]
    assert workload(resources)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for service in (r for r in resources if r["kind"] == "Service"):
        assert service["spec"]["selector"].items() <= labels.items()
    for kind, path in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        assert only(resources, kind)["spec"][path]["matchLabels"].items() <= labels.items()


def test_service_monitor_scrapes_the_http_service(resources):
    monitor = only(resources, "ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    service = only(resources, "Service", "osdn-server")
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["spec"]["jobLabel"] in labels
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    encrypted = any(a.startswith("--tls-cert-file=") for a in container_of(resources)["args"])
    assert endpoint.get("scheme", "http") == ("https" if encrypted else "http")


def test_autoscaler_and_adapter_name_metrics_that_exist(resources):
    metrics = exported_metrics() & documented_metrics()
    rules = load_all(KUBERNETES / "components" / "autoscaling" / "adapter-rules.yaml")[0]
    served = set()
    for rule in rules:
        named = set(re.findall(r"osdn_\w+", rule["seriesQuery"] + rule["metricsQuery"]))
        assert named <= metrics
        series = re.match(r"\w+", rule["seriesQuery"]).group()
        served.add(rule.get("name", {}).get("as", series))
    scalers = [r for r in resources if r["kind"] == "HorizontalPodAutoscaler"]
    # A replica with conversations on its disk must not be scaled away.
    assert bool(scalers) == (workload(resources)["kind"] == "Deployment")
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", "osdn-server")
        assert {m["pods"]["metric"]["name"] for m in scaler["spec"]["metrics"]} <= served


def test_model_comes_from_the_claim_or_the_image(resources):
    pod = pod_of(resources)
    (volume,) = [v for v in pod["volumes"] if v["name"] == "model"]
    if "persistentVolumeClaim" in volume:
        assert "initContainers" not in pod
        return
    (init,) = pod["initContainers"]
    source, target = init["command"][-2:]
    assert source == f"/usr/local/share/osdn-server/models/{BUNDLED_MODEL.name}/."
    assert {"name": "model", "mountPath": target.rstrip("/")} in init["volumeMounts"]
    assert init["image"] == container_of(resources)["image"]
