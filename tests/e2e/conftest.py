"""Fixtures: converted models, and a factory of servers that are always stopped and always shown."""

from __future__ import annotations

from pathlib import Path

import pytest

import harness
from checkpoints import write_text_checkpoint
from harness import BUNDLED_MODEL, GOLDEN, Client, Server, run_tools


@pytest.fixture(scope="session", autouse=True)
def protos(tmp_path_factory) -> None:
    for program in (harness.SERVER, harness.TOOLS):
        assert program.exists(), f"{program} is not built; run tests/run.sh"
    harness.compile_protos(tmp_path_factory.mktemp("protos"))


def convert_golden(name: str, folder: Path) -> Path:
    model = folder / name
    run_tools("convert", GOLDEN / name, model)
    return model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Two layers of random weights, vocabulary 97, no tokenizer; float32."""
    return convert_golden("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def gated_model(tmp_path_factory) -> Path:
    """Like tiny_model with APF, an output gate, wide values and tied embeddings."""
    return convert_golden("tiny_apf_gate", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def text_model(tmp_path_factory) -> Path:
    """Random weights over a small byte-fallback vocabulary, with tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("text")
    write_text_checkpoint(folder / "checkpoint")
    run_tools("convert", folder / "checkpoint", folder / "tiny-text")
    return folder / "tiny-text"


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    assert (BUNDLED_MODEL / "model.yaml").exists(), f"{BUNDLED_MODEL} is missing from this tree"
    return BUNDLED_MODEL


class Servers:
    """Starts servers; stop() ends them all and keeps their logs for the report."""

    def __init__(self) -> None:
        self.started: list[Server] = []

    def __call__(self, model: Path, *flags: str, serving: bool = True, **kwargs) -> Server:
        server = Server(model, *flags, **kwargs)
        self.started.append(server)
        return server.wait_serving() if serving else server

    def stop(self) -> None:
        for server in self.started:
            server.stop()


@pytest.fixture
def servers(request):
    """Servers of one test, with any flags."""
    factory = Servers()
    request.node.servers = factory
    yield factory
    factory.stop()


@pytest.fixture(scope="module")
def tiny_server(tiny_model):
    server = Server(tiny_model, "--max-tokens-limit", "100000")
    yield server.wait_serving()
    assert server.stop() == 0, server.log


@pytest.fixture(scope="module")
def text_server(text_model):
    server = Server(text_model, "--max-tokens-limit", "1000000")
    yield server.wait_serving()
    assert server.stop() == 0, server.log


@pytest.fixture(scope="module")
def bundled_server(bundled_model):
    server = Server(bundled_model)
    yield server.wait_serving()
    assert server.stop() == 0, server.log


@pytest.fixture
def tiny(tiny_server) -> Client:
    return Client(tiny_server.channel())


@pytest.fixture
def bundled(bundled_server) -> Client:
    return Client(bundled_server.channel())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds the logs of all servers a failed test used."""
    report = yield
    if report.failed:
        used = [*getattr(item, "servers", Servers()).started,
                *(value for value in getattr(item, "funcargs", {}).values()
                  if isinstance(value, Server))]
        for number, server in enumerate(used):
            report.sections.append((f"log of osdn-server {number}", server.log))
    return report
