"""deploy/quickstart.sh: from the tree to a streamed completion, twice."""

from __future__ import annotations

import os
import re
import socket
import subprocess

import pytest
from harness import BUILD, REPO, run_tools

QUICKSTART = REPO / "deploy" / "quickstart.sh"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(BUILD.name != "cpu", reason="quickstart builds the preset cpu"),
]


def quickstart(*arguments: str) -> str:
    done = subprocess.run([QUICKSTART, *arguments], capture_output=True, text=True, timeout=1700,
                          stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def stop_afterwards():
    yield
    quickstart("--stop")


def test_background_server_goes_on_until_stopped(bundled_model, stop_afterwards):
    with socket.socket() as holder:  # the first port tried is taken
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        first = quickstart("--port", str(port))
        address = re.search(r"The server runs on (127\.0\.0\.1:(\d+))", first)
        assert address and int(address.group(2)) != port
        assert f"Port {port} is taken" in first
    assert run_tools("health", "--address", address.group(1)).returncode == 0
    second = quickstart("--port", address.group(2), "--prompt", "The little dog")
    assert f"The server runs on {address.group(1)}" in second
    for command in ("osdn-tools chat", "osdn-tools generate", "quickstart.sh --stop", "import grpc"):
        assert command in second
    quickstart("--stop")
    assert run_tools("health", "--address", address.group(1), check=False).returncode == 1


def test_once_leaves_no_server(bundled_model):
    output = quickstart("--once", "--prompt", "The little dog")
    address = re.search(r"serves \S+ on (\S+:\d+)\.", output).group(1)
    assert "A completion, streamed" in output
    assert run_tools("health", "--address", address, check=False).returncode == 1


def test_a_folder_without_a_model_is_an_error(tmp_path):
    done = subprocess.run([QUICKSTART, "--model", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "model.yaml" in done.stderr and str(tmp_path) in done.stderr
