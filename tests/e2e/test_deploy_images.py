"""Dockerfiles, compose and the systemd unit: right to their linters, and true about the programs.

tests/containers.sh builds and runs the image.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy_facts import DEPLOY, flags_of
from harness import REPO, run_server

DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
COMPOSE = DEPLOY / "compose.yaml"
UNIT = DEPLOY / "osdn-server.service"
TOOLS_OF_VENV = Path(sys.executable).parent


def instructions(dockerfile: Path, name: str) -> list[str]:
    """Arguments of the instructions of that name, continued lines joined."""
    text = dockerfile.read_text().replace("\\\n", " ")
    return re.findall(rf"^\s*{name}\s+(.*)$", text, re.MULTILINE)


def check(arguments: list[str]) -> None:
    done = run_server(*arguments, "--check-config")
    assert done.returncode == 0, done.stdout + done.stderr


def entrypoint_of(dockerfile: Path) -> list[str]:
    (entrypoint,) = instructions(dockerfile, "ENTRYPOINT")
    program, *arguments = json.loads(entrypoint)
    assert program == "osdn-server"
    return arguments


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
class TestDockerfile:
    def test_hadolint(self, dockerfile):
        done = subprocess.run(
            [TOOLS_OF_VENV / "hadolint", dockerfile], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_command_line_is_right(self, dockerfile):
        (command,) = instructions(dockerfile, "CMD")
        check(entrypoint_of(dockerfile) + json.loads(command))

    def test_ports_are_those_it_listens_on(self, dockerfile):
        arguments = entrypoint_of(dockerfile)
        listening = {
            arguments[arguments.index(flag) + 1].rpartition(":")[2]
            for flag in ("--grpc-address", "--http-address")
            if flag in arguments
        }
        assert set(instructions(dockerfile, "EXPOSE")[0].split()) == listening

    def test_health_check_is_a_command_of_the_tools(self, dockerfile):
        (check_line,) = instructions(dockerfile, "HEALTHCHECK")
        program, subcommand, *arguments = json.loads(check_line.partition(" CMD ")[2])
        assert (program, subcommand) == ("osdn-tools", "health")
        assert {a for a in arguments if a.startswith("--")} <= flags_of("osdn-tools", "health")

    def test_runs_as_nobody_who_builds(self, dockerfile):
        assert re.fullmatch(r"\d{4,}:\d{4,}", instructions(dockerfile, "USER")[-1])
        bases = instructions(dockerfile, "FROM")
        assert [base.partition(" AS ")[2] for base in bases[-2:]] == ["build", ""]
        assert bases[-1] == "${BASE}", "the last stage must not be one with a compiler"


def test_both_images_run_the_same_way():
    of = {
        path.name: (
            entrypoint_of(path),
            instructions(path, "USER"),
            instructions(path, "HEALTHCHECK"),
        )
        for path in DOCKERFILES
    }
    assert of["Dockerfile"] == of["Dockerfile.cuda"]


def test_compose_lint():
    done = subprocess.run(
        [TOOLS_OF_VENV / "compose-lint", "--fail-on", "high", COMPOSE],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_says_what_the_programs_take():
    compose = yaml.safe_load(COMPOSE.read_text())
    services = compose["services"]
    server = services["server"]
    dockerfile = (
        COMPOSE.parent / server["build"]["context"] / server["build"]["dockerfile"]
    ).resolve()
    assert dockerfile in DOCKERFILES
    check(entrypoint_of(dockerfile) + server["command"])
    published = {port.split(":")[2] for port in server["ports"]}
    assert published == set(instructions(dockerfile, "EXPOSE")[0].split())
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert host in services and port in published
    defaults = yaml.safe_load((DEPLOY / "server.yaml").read_text())["drain"]
    drain = sum(int(defaults[key].removesuffix("s")) for key in ("propagation", "timeout"))
    assert int(server["stop_grace_period"].removesuffix("s")) > drain


def test_compose_publishes_on_loopback_and_mounts_what_exists():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE.parent / source).is_dir(), volume


def unit_values(key: str) -> list[str]:
    text = UNIT.read_text().replace("\\\n", " ")
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine"
)
def test_systemd_unit_verifies(tmp_path):
    # The programs are not installed here: the unit's own are replaced by one that exists.
    text = UNIT.read_text().replace("/usr/local/bin/osdn-server", "/bin/true")
    text = text.replace("/usr/local/bin/osdn-tools", "/bin/true")
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert done.returncode == 0 and not complaints, done.stderr


def test_systemd_unit_says_what_the_program_takes():
    (start,) = unit_values("ExecStart")
    program, *arguments = shlex.split(start)
    assert program == "/usr/local/bin/osdn-server"
    arguments[arguments.index("/etc/osdn-server/server.yaml")] = str(
        REPO / "deploy" / "server.yaml"
    )
    check([a.replace("%S", "/var/lib").replace("%d", "/run/credentials") for a in arguments])
    defaults = yaml.safe_load((DEPLOY / "server.yaml").read_text())["drain"]
    drain = sum(int(defaults[key].removesuffix("s")) for key in ("propagation", "timeout"))
    assert int(unit_values("TimeoutStopSec")[0].removesuffix("s")) > drain
