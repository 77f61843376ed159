"""API keys, TLS, metrics and request ids over HTTP."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request

import openai
import pytest
from harness import PATIENCE, wait_until
from test_security import Authority, key_entry

MODEL = "osdn-mini"
PROMPT = {"model": MODEL, "prompt": "The dog", "max_tokens": 3}


@pytest.fixture(scope="module")
def keyed(request, bundled_model, tmp_path_factory):
    from harness import Server

    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    path.write_text("keys:\n" + key_entry("ann", "ann-key", "generate, state") +
                    key_entry("bob", "bob-key", "generate, state") +
                    key_entry("reader", "reader-key", "generate", max_concurrent=1))
    server = Server(bundled_model, "--auth-keys-file", path, "--log-level", "debug")
    yield server.wait_serving()
    assert server.stop() == 0, server.log


def client(server, key: str, scheme: str = "http") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{scheme}://{server.http_address}/v1", api_key=key,
                         timeout=PATIENCE, max_retries=0)


def fetch(url: str, headers=None, context=None):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}),
                                timeout=PATIENCE, context=context) as response:
        return response.read().decode(), response.headers


def test_without_a_key_nothing_but_health_metrics_and_the_page(keyed):
    api = client(keyed, "wrong")
    root = f"http://{keyed.http_address}"
    for call in (api.models.list, lambda: api.completions.create(**PROMPT),
                 lambda: api.responses.create(model=MODEL, input="x"),
                 lambda: api.get(root + "/osdn/v1/states", cast_to=object)):
        with pytest.raises(openai.AuthenticationError):
            call()
    for path in ("/health", "/metrics", "/"):
        assert fetch(root + path)[0]
    assert client(keyed, "ann-key").completions.create(**PROMPT).usage.completion_tokens == 3
    for secret in ("ann-key", "wrong"):
        assert secret not in keyed.log


def test_scopes_and_owners(keyed):
    reader, ann, bob = (client(keyed, f"{name}-key") for name in ("reader", "ann", "bob"))
    assert reader.completions.create(**PROMPT).choices
    with pytest.raises(openai.PermissionDeniedError, match="state"):
        reader.completions.create(**PROMPT, extra_body={"save_state_as": "x"})
    # A default is as much as the key may; what is asked for is refused.
    assert reader.responses.create(model=MODEL, input="x", max_output_tokens=3).store is False
    with pytest.raises(openai.PermissionDeniedError):
        reader.responses.create(model=MODEL, input="x", max_output_tokens=3, store=True)
    mine = ann.responses.create(model=MODEL, input="x", max_output_tokens=3)
    assert mine.store is True
    with pytest.raises(openai.NotFoundError):
        bob.responses.create(model=MODEL, input="x", previous_response_id=mine.id)
    states = f"http://{keyed.http_address}/osdn/v1/states"
    assert [s["label"] for s in ann.get(states, cast_to=object)["data"]] == [mine.id]
    assert bob.get(states, cast_to=object)["data"] == []


def test_a_limit_of_running_calls(keyed):
    reader = client(keyed, "reader-key")
    stream = reader.completions.create(model=MODEL, prompt="Once", max_tokens=30000, stream=True,
                                       extra_body={"ignore_eos": True})
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as error:
        reader.completions.create(**PROMPT)
    assert int(error.value.response.headers["retry-after"]) >= 1
    stream.close()

    def free() -> bool:
        try:
            return bool(reader.completions.create(**PROMPT).choices)
        except openai.RateLimitError:
            return False

    wait_until(free, "the key may call again")


def test_request_ids_and_metrics(keyed):
    api = client(keyed, "ann-key")
    answer = api.completions.with_raw_response.create(
        **PROMPT, extra_headers={"x-request-id": "my-request-17"})
    assert answer.headers["x-request-id"] == "my-request-17"
    wait_until(lambda: "my-request-17" in keyed.log, "the log names the request")
    assert api.models.with_raw_response.list().headers["x-request-id"]
    with pytest.raises(openai.NotFoundError):
        api.get("/no/such/path", cast_to=object)
    text, headers = fetch(f"http://{keyed.http_address}/metrics")
    assert headers.get_content_type() == "text/plain"
    lines = [line for line in text.splitlines() if line.startswith("osdn_requests_total")]
    for method, code in (("POST /v1/completions", "200"), ("POST /v1/completions", "401")):
        assert any(f'method="{method}"' in line and f'code="{code}"' in line for line in lines), lines
    assert not any("/no/such/path" in line for line in lines)


def test_tls_with_clients_of_its_own_and_a_certificate_that_is_replaced(servers, bundled_model,
                                                                        tmp_path):
    ours, later = Authority(tmp_path, "ours"), Authority(tmp_path, "later")
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"
    ours.issue(cert, key)
    ours.issue(tmp_path / "client.pem", tmp_path / "client.key")
    server = servers(bundled_model, "--tls-cert-file", cert, "--tls-key-file", key,
                     "--tls-client-ca-file", ours.file, serving=False)
    url = f"https://{server.http_address}"

    def context(authority, known: bool = True) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(authority.file))
        if known:
            made.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        return made

    def healthy(authority) -> bool:
        try:
            return "ok" in fetch(url + "/health", context=context(authority))[0]
        except (urllib.error.URLError, ConnectionError, ssl.SSLError):
            return False

    wait_until(lambda: healthy(ours), "it serves")
    body = json.dumps({**PROMPT, "max_tokens": 200, "stream": True}).encode()
    request = urllib.request.Request(url + "/v1/completions", body,
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE, context=context(ours)) as response:
        assert response.read().endswith(b"data: [DONE]\n\n")
    with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
        fetch(url + "/health", context=context(ours, known=False))
    with pytest.raises((urllib.error.URLError, ConnectionError, OSError)):
        fetch(url.replace("https", "http") + "/health")
    assert not healthy(later)
    later.issue(cert, key)
    wait_until(lambda: healthy(later), "the new certificate is shown")
