"""API keys and TLS: who may call, whose states are whose, and what changes while a server runs."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from harness import Client, Server, collect, run_server, run_tools, wait_until
from test_states import States

Code = grpc.StatusCode


def key_entry(name: str, key: str, scopes: str, **limits: int) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    text = f"  - {{name: {name}, sha256: {digest}, scopes: [{scopes}]"
    return text + "".join(f", {limit}: {value}" for limit, value in limits.items()) + "}\n"


class WithKey(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor,
              grpc.StreamUnaryClientInterceptor):
    """Sends "authorization: Bearer KEY" with every call, as any client would."""

    def __init__(self, key: str) -> None:
        self.metadata = [("authorization", f"Bearer {key}")]

    def _go(self, go, details, request):
        return go(grpc_details(details, (details.metadata or []) + self.metadata), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _go


def grpc_details(details, metadata):
    class Details(grpc.ClientCallDetails):
        method, timeout = details.method, details.timeout
        credentials, wait_for_ready = details.credentials, details.wait_for_ready
        compression = details.compression

    Details.metadata = metadata
    return Details()


def client_with(server: Server, key: str) -> States:
    return States(grpc.intercept_channel(server.channel(), WithKey(key)))


def refusal(call) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text("keys:\n" + key_entry("ann", "ann-key", "generate, state") +
                    key_entry("bob", "bob-key", "generate, state") +
                    key_entry("reader", "reader-key", "generate", max_concurrent=1) +
                    key_entry("slow", "slow-key", "generate", tokens_per_minute=50))
    return path


@pytest.fixture
def keyed(servers, tiny_model, keys_file):
    return servers(tiny_model, "--auth-keys-file", keys_file, "--log-level", "debug")


def test_without_a_key_nothing_but_health(keyed):
    assert keyed.health() == health_pb2.HealthCheckResponse.SERVING
    for client in (States(keyed.channel()), client_with(keyed, "wrong")):
        calls = [lambda: client.generate([5]), lambda: collect(client.start([5])),
                 lambda: client.stub.GetModel(client.pb.GetModelRequest()),
                 lambda: client.list(), lambda: client.export("x"), lambda: client.import_(b"x"),
                 lambda: client.save([5])]
        for call in calls:
            assert refusal(call).code() == Code.UNAUTHENTICATED
    assert len(client_with(keyed, "ann-key").generate([5], max_tokens=3).choices) == 1
    for secret in ("ann-key", "wrong"):
        assert secret not in keyed.log


def test_scopes(keyed):
    reader = client_with(keyed, "reader-key")
    assert reader.generate([5], max_tokens=2).usage.completion_tokens == 2
    for call in (lambda: reader.list(), lambda: reader.save([5]),
                 lambda: reader.go([5], {"save_state_as": "x"}),
                 lambda: reader.go([5], {"return_state": True}),
                 lambda: reader.go(None, {"state_blob": b"x"})):
        error = refusal(call)
        assert error.code() == Code.PERMISSION_DENIED
        assert "reader" in error.details() and "state" in error.details()


def test_states_belong_to_the_key_that_made_them(keyed):
    ann, bob = client_with(keyed, "ann-key"), client_with(keyed, "bob-key")
    mine = ann.go([5, 6], {"save_state_as": "mine"}, max_tokens=3).state.state_id
    assert [state.state_id for state in ann.list()] == [mine]
    assert bob.list() == []
    for call in (lambda: bob.go(None, {"state_id": mine}), lambda: bob.export(mine),
                 lambda: bob.states.DeleteState(bob.session.DeleteStateRequest(state_id=mine)),
                 lambda: bob.states.GetState(bob.session.GetStateRequest(state_id=mine)),
                 lambda: bob.states.ForkState(bob.session.ForkStateRequest(state_id=mine))):
        assert refusal(call).code() == Code.NOT_FOUND
    assert ann.go(None, {"state_id": mine}, max_tokens=2).usage.completion_tokens == 2


def test_limits_of_a_key_say_when_to_come_back(keyed):
    reader, slow = client_with(keyed, "reader-key"), client_with(keyed, "slow-key")
    call = reader.start([5], max_tokens=30_000, ignore_eos=True)
    next(call)
    error = refusal(lambda: reader.generate([5]))
    assert error.code() == Code.RESOURCE_EXHAUSTED and "max_concurrent" in error.details()
    call.cancel()
    wait_until(lambda: answers(reader), "the cancelled call no longer counts")

    slow.generate([5] * 40, max_tokens=30, ignore_eos=True)
    error = refusal(lambda: slow.generate([5], max_tokens=1))
    assert error.code() == Code.RESOURCE_EXHAUSTED and "tokens_per_minute" in error.details()
    info = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    assert 0 < info.retry_delay.ToTimedelta().total_seconds() <= 60


def answers(client) -> bool:
    try:
        return bool(client.generate([5], max_tokens=1).choices)
    except grpc.RpcError:
        return False


def test_keys_are_read_again_and_a_wrong_file_changes_nothing(keyed, keys_file):
    made = run_tools("key", "carol", "--scopes", "generate")
    entry = made.stderr[made.stderr.index("  - name"):]
    carol = client_with(keyed, made.stdout.strip())
    assert refusal(lambda: carol.generate([5])).code() == Code.UNAUTHENTICATED
    keys_file.write_text("keys:\n" + entry)
    wait_until(lambda: answers(carol), "the new key is known")
    ann = client_with(keyed, "ann-key")
    assert refusal(lambda: ann.generate([5])).code() == Code.UNAUTHENTICATED
    keys_file.write_text("keys: [nonsense]\n")
    wait_until(lambda: "API keys stay as they were" in keyed.log, "the file's error is told")
    assert answers(carol)
    assert keyed.log.count("API keys stay as they were") == 1


def test_a_file_of_keys_that_is_wrong_is_told_at_the_start(tiny_model, tmp_path):
    (tmp_path / "keys.yaml").write_text("keys:\n  - {name: a, sha256: 12, scopes: [fly]}\n")
    for path, texts in ((tmp_path / "none.yaml", ["none.yaml"]),
                        (tmp_path / "keys.yaml", ["keys.yaml", "64 hex digits", "fly"])):
        done = run_server("--model", tiny_model, "--grpc-address", "127.0.0.1:0",
                          "--auth-keys-file", path)
        assert done.returncode == 1
        for text in texts:
            assert text in done.stderr


def test_request_ids_and_traces_are_in_the_log(servers, tiny_model):
    server = servers(tiny_model, "--log-level", "debug", "--log-format", "json")
    client = Client(server.channel())
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    _, call = client.stub.Generate.with_call(
        client.request([5], max_tokens=2, ignore_eos=True),
        metadata=[("x-request-id", "mine-\"1\""), ("traceparent", trace)])
    assert ("x-request-id", "mine-\"1\"") in call.initial_metadata()
    _, call = client.stub.Generate.with_call(client.request([5], max_tokens=2, ignore_eos=True))
    made = dict(call.initial_metadata())["x-request-id"]
    wait_until(lambda: made in server.log, "both requests are logged")
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    first, second = [line["request"] for line in lines if line["message"] == "request"]
    assert first["request_id"] == "mine-\"1\"" and first["traceparent"] == trace
    assert first["method"] == "Generate" and first["code"] == "OK"
    assert (first["prompt_tokens"], first["completion_tokens"]) == (1, 2)
    assert second["request_id"] == made and "traceparent" not in second


def test_keys_hold_for_http_too(servers, tiny_model, keys_file):
    server = servers(tiny_model, "--auth-keys-file", keys_file)

    def ask(method: str, path: str, key: str | None, body: dict | None = None):
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection(server.http_address, timeout=60)
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text, answer.headers

    prompt = {"model": "tiny", "prompt": [5, 6], "max_tokens": 2}
    assert ask("GET", "/health", None)[0] == 200
    for key in (None, "wrong"):
        status, text, _ = ask("POST", "/v1/completions", key, prompt)
        assert status == 401 and json.loads(text)["error"]["message"]
    for _ in range(3):  # one after the other is never more than one at once
        status, _, headers = ask("POST", "/v1/completions", "reader-key", prompt)
        assert status == 200 and headers["X-Request-Id"]
    assert ask("GET", "/osdn/v1/states", "reader-key")[0] == 403
    assert ask("POST", "/v1/completions", "reader-key", {**prompt, "save_state_as": "x"})[0] == 403
    saved = ask("POST", "/v1/completions", "ann-key", {**prompt, "save_state_as": "x"})
    assert saved[0] == 200
    assert "x" in ask("GET", "/osdn/v1/states", "ann-key")[1]
    assert json.loads(ask("GET", "/osdn/v1/states", "bob-key")[1])["data"] == []
    metrics = ask("GET", "/metrics", None)[1]
    for line in ('osdn_requests_total{code="200",method="POST /v1/completions"} 4',
                 'osdn_requests_total{code="401",method="POST /v1/completions"} 2',
                 'osdn_rejected_total{reason="unauthenticated"} 2',
                 'osdn_rejected_total{reason="permission"} 1', "osdn_generation_tokens_total 8"):
        assert line in metrics


# --- TLS ---

def openssl(*arguments) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder, name: str) -> None:
        self.folder, self.name = folder, name
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                "-nodes", "-days", 2, "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key",
                "-out", self.file)

    @property
    def file(self):
        return self.folder / f"{self.name}.pem"

    def issue(self, cert, key) -> None:
        request, names = self.folder / "request.csr", self.folder / "names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-subj", "/CN=localhost", "-keyout", key, "-out", request)
        openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey",
                self.folder / f"{self.name}.key", "-CAcreateserial", "-days", 2,
                "-extfile", names, "-out", cert)


def trusting(authority: Authority, cert=None, key=None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        authority.file.read_bytes(), key and key.read_bytes(), cert and cert.read_bytes())


def test_tls_with_a_certificate_that_is_replaced(servers, tiny_model, tmp_path):
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"
    old.issue(cert, key)
    server = servers(tiny_model, "--tls-cert-file", cert, "--tls-key-file", key,
                     credentials=trusting(old))
    client = Client(server.channel())
    assert client.generate([5], max_tokens=2).choices
    assert "TLS" in server.log
    address = server.address
    said = run_tools("generate", "--address", address, "--tls-ca", old.file, "--ids", "5",
                     "--max-tokens", "2", "--json")
    assert said.stdout
    for flags in ([], ["--tls-ca", new.file]):
        assert run_tools("health", "--address", address, *flags, check=False).returncode == 1
    new.issue(cert, key)
    serves = lambda: run_tools("health", "--address", address, "--tls-ca", new.file,
                               check=False).returncode == 0
    wait_until(serves, "the new certificate is shown")
    assert client.generate([5], max_tokens=2).choices, "the old connection goes on"


def test_mutual_tls(servers, tiny_model, tmp_path):
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"
    ours.issue(cert, key)
    ours.issue(tmp_path / "client.pem", tmp_path / "client.key")
    theirs.issue(tmp_path / "other.pem", tmp_path / "other.key")
    server = servers(tiny_model, "--tls-cert-file", cert, "--tls-key-file", key,
                     "--tls-client-ca-file", ours.file,
                     credentials=trusting(ours, tmp_path / "client.pem", tmp_path / "client.key"))
    assert Client(server.channel()).generate([5], max_tokens=2).choices
    flags = ["health", "--address", server.address, "--tls-ca", ours.file]
    for name, code in (("client", 0), ("other", 1)):
        done = run_tools(*flags, "--tls-cert", tmp_path / f"{name}.pem", "--tls-key",
                         tmp_path / f"{name}.key", check=False)
        assert done.returncode == code, done.stderr
    assert run_tools(*flags, check=False).returncode == 1


def test_tls_files_that_are_wrong_are_told_at_the_start(tiny_model, tmp_path):
    authority = Authority(tmp_path, "ours")
    authority.issue(tmp_path / "a.pem", tmp_path / "a.key")
    authority.issue(tmp_path / "b.pem", tmp_path / "b.key")
    (tmp_path / "junk").write_text("junk")
    for cert, key, client_ca, told in (("a.pem", "b.key", None, "tls.key_file"),
                                       ("junk", "a.key", None, "tls.cert_file"),
                                       ("none", "a.key", None, "tls-key-file"),
                                       ("a.pem", "a.key", "junk", "tls.client_ca_file")):
        flags = [] if cert == "none" else ["--tls-cert-file", tmp_path / cert]
        flags += ["--tls-key-file", tmp_path / key]
        flags += ["--tls-client-ca-file", tmp_path / client_ca] if client_ca else []
        done = run_server("--model", tiny_model, "--grpc-address", "127.0.0.1:0", *flags)
        assert done.returncode in (1, 2) and told in done.stderr, done.stderr
