"""Real processes on real sockets: runs the built programs and talks to them with grpcio."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

REPO = Path(__file__).resolve().parents[2]
GOLDEN = REPO / "tests" / "data" / "golden"
BUNDLED_MODEL = REPO / "models" / "osdn-mini"
BUILD = Path(os.environ.get("OSDN_BUILD_DIR", REPO / "build" / "cpu")).resolve()
SERVER = BUILD / "bin" / "osdn-server"
TOOLS = BUILD / "bin" / "osdn-tools"
# Sanitizers slow everything; no test asserts on time, these only bound how long one may hang.
PATIENCE = 60.0


def compile_protos(folder: Path) -> None:
    """What any user would do: only the .proto, only grpcio-tools."""
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{REPO / 'proto'}",
                    f"--python_out={folder}", f"--grpc_python_out={folder}",
                    "osdn/v1/inference.proto", "osdn/v1/session.proto"], check=True)
    sys.path.insert(0, str(folder))


def wait_until(condition, what: str, timeout: float = PATIENCE):
    """Polls until `condition()` is truthy and returns that value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout:.0f} s still not: {what}")
        time.sleep(0.02)


def run_program(program: Path, *arguments: str | Path, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True,
                          errors="replace", **kwargs)


def run_tools(*arguments: str | Path, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
    """osdn-tools with these arguments; output captured as text."""
    kwargs.setdefault("timeout", PATIENCE * 3)
    done = run_program(TOOLS, *arguments, **kwargs)
    if check and done.returncode != 0:
        raise AssertionError(f"osdn-tools {' '.join(map(str, arguments))} exited with "
                             f"{done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def run_server(*arguments: str | Path, **kwargs) -> subprocess.CompletedProcess:
    """osdn-server with arguments that make it end by itself."""
    kwargs.setdefault("timeout", PATIENCE)
    if "--grpc-address" in arguments and "--http-address" not in arguments:
        arguments = (*arguments, "--http-address", "127.0.0.1:0")
    return run_program(SERVER, *arguments, **kwargs)


class Server:
    """One osdn-server process. Its log is shown by pytest when a test fails."""

    def __init__(self, model: Path, *flags: str, address: str = "127.0.0.1:0",
                 credentials: grpc.ChannelCredentials | None = None) -> None:
        self.log = ""
        self.credentials = credentials
        self._log_lock = threading.Lock()
        command = [SERVER, "--model", model, "--grpc-address", address,
                   "--http-address", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True, errors="replace")
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self._channels: list[grpc.Channel] = []

    def _read_log(self) -> None:
        for line in self.process.stdout:
            with self._log_lock:
                self.log += line

    def _bound_address(self) -> str | None:
        match = re.search(r"listening on (\S+:\d+)", self.log)
        if match is None and self.process.poll() is not None:
            raise AssertionError(f"osdn-server exited with {self.process.returncode}:\n{self.log}")
        return match and match.group(1)

    @property
    def address(self) -> str:
        return wait_until(self._bound_address, "a line 'listening on HOST:PORT' in the log")

    @property
    def http_address(self) -> str:
        """HOST:PORT of HTTP."""
        found = wait_until(lambda: re.search(r" https?://(\S+:\d+) ", self.log),
                           "a line with http://HOST:PORT in the log")
        return found.group(1)

    def channel(self) -> grpc.Channel:
        """A connection of its own, closed with the server."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.credentials is None:
            channel = grpc.insecure_channel(self.address, options=options)
        else:
            channel = grpc.secure_channel(self.address, self.credentials, options=options)
        self._channels.append(channel)
        return channel

    def health(self, service: str = "") -> int:
        """The serving status as grpc.health.v1 tells it."""
        stub = health_pb2_grpc.HealthStub(self.channel())
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE).status

    def wait_serving(self) -> Server:
        serving = health_pb2.HealthCheckResponse.SERVING

        def is_serving() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(
                    f"osdn-server exited with {self.process.returncode}:\n{self.log}")
            return self.health() == serving

        wait_until(is_serving, "SERVING")
        return self

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_exit(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def stop(self) -> int:
        """Ends the server the quick way (SIGINT skips the drain's propagation) and says how it ended."""
        for channel in self._channels:
            channel.close()
        if self.process.poll() is None:
            self.signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._reader.join(PATIENCE)
        return self.process.wait()


@dataclasses.dataclass
class Result:
    """A finished stream."""

    ids: list[int]
    text: str
    finished: object
    deltas: list
    progress: list


class Client:
    """A thin wrapper of the generated stub: one connection, requests from keyword arguments."""

    def __init__(self, channel: grpc.Channel) -> None:
        from osdn.v1 import inference_pb2, inference_pb2_grpc

        self.pb = inference_pb2
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)

    def request(self, prompt, *, sampling: dict | None = None, output: dict | None = None, **stop):
        """`prompt`: text, a list of ids or a list of (role, content). Greedy unless told otherwise."""
        pb = self.pb
        if isinstance(prompt, str):
            content = pb.Prompt(text=prompt)
        elif prompt and isinstance(prompt[0], tuple):
            content = pb.Prompt(messages=pb.Messages(
                messages=[pb.Message(role=role, content=text) for role, text in prompt]))
        else:
            content = pb.Prompt(tokens=pb.TokenIds(ids=prompt))
        return pb.GenerateRequest(
            prompt=content, sampling=pb.SamplingParams(**(sampling or {"temperature": 0})),
            stop=pb.StopConditions(**stop), output=pb.OutputOptions(**(output or {})))

    def start(self, prompt, timeout: float = PATIENCE * 3, **kwargs):
        """The running call; iterate it, or cancel() it."""
        return self.stub.GenerateStream(self.request(prompt, **kwargs), timeout=timeout)

    def stream(self, prompt, **kwargs) -> Result:
        return collect(self.start(prompt, **kwargs))

    def generate(self, prompt, timeout: float = PATIENCE * 3, **kwargs):
        return self.stub.Generate(self.request(prompt, **kwargs), timeout=timeout)


def collect(call) -> Result:
    """Reads a stream to its end and checks the order of its frames."""
    result = Result([], "", None, [], [])
    for frame in call:
        assert result.finished is None, "a frame after Finished"
        kind = frame.WhichOneof("event")
        if kind == "delta":
            result.deltas.append(frame.delta)
            result.ids.extend(frame.delta.token_ids)
            result.text += frame.delta.text
        elif kind == "prefill_progress":
            assert not result.deltas, "prefill progress after a token"
            result.progress.append(frame.prefill_progress)
        elif kind == "finished":
            result.finished = frame.finished
    assert result.finished is not None, "the stream ended without a Finished frame"
    return result


def violations(error: grpc.RpcError) -> dict[str, str]:
    """field -> description of the BadRequest detail."""
    result = {}
    for detail in rpc_status.from_call(error).details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            result.update({v.field: v.description for v in bad_request.field_violations})
    return result
