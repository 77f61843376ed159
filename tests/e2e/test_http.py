"""HTTP itself: what is malformed or hostile is refused, and nobody else notices."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import random
import signal
import socket
import threading
import time

import pytest
from harness import PATIENCE, Client, wait_until

JSON = {"Content-Type": "application/json"}
LONG = {"prompt": "Once", "max_tokens": 30000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server(request, bundled_model):
    from harness import Server

    started = Server(bundled_model, "--http-max-connections", "64", "--http-max-body-bytes",
                     "100000", "--http-read-timeout", "1s", "--http-write-timeout", "1s",
                     "--http-idle-timeout", "3s", "--http-cors-origins", "https://chat.example")
    yield started.wait_serving()
    assert started.stop() == 0, started.log


def connect(server) -> http.client.HTTPConnection:
    host, port = server.http_address.split(":")
    return http.client.HTTPConnection(host, int(port), timeout=PATIENCE)


def ask(server, method: str, path: str, body=None, headers=None):
    """(status, parsed JSON or text, headers)"""
    connection = connect(server)
    try:
        if isinstance(body, dict):
            body = json.dumps(body)
        connection.request(method, path, body, JSON if headers is None else headers)
        response = connection.getresponse()
        text = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(text) if is_json and text else text, response.headers
    finally:
        connection.close()


def dial(server) -> socket.socket:
    host, port = server.http_address.split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def raw(server, data: bytes) -> bytes:
    """What the server says until it closes the connection; b"" where it resets it."""
    with dial(server) as sock:
        answer = b""
        try:
            sock.sendall(data)
            while piece := sock.recv(65536):
                answer += piece
        except ConnectionError:
            pass
        return answer


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def capacity(server):
    client = Client(server.channel())
    return client.stub.GetCapacity(client.pb.GetCapacityRequest(), timeout=PATIENCE)


def well(server) -> None:
    """It is up, idle, and answers."""
    wait_until(lambda: capacity(server).running == 0 and capacity(server).queued_requests == 0,
               "nothing runs")
    status, answer, _ = ask(server, "POST", "/v1/completions",
                            {"prompt": "The dog", "max_tokens": 3, "temperature": 0})
    assert status == 200 and answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("body, names", [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"[1]", "not an object"),
    (b'{"prompt": "a", "prompt": }', "not JSON"),
    (b"\xff\xfe{}", "not JSON"),
    (b'{"prompt": "\xc3\x28"}', "UTF-8"),
    (b'{"prompt": "\\ud800"}', "surrogate"),
    (b'{"temperature": 1e999, "prompt": "a"}', "number"),
    (b"[" * 50000, "64 deep"),
    (b'{"a":' * 16000, "64 deep"),
    (b'{"logit_bias": {' + b",".join(b'"%d": 1' % i for i in range(5000)) + b"}}", "2048 members"),
    (b'{"prompt": "a", "stop": [1, {}]}', "stop[1]"),
    (b'{"prompt": [1, 99999999999]}', "prompt[1]"),
    (b'{"prompt": [1, -5]}', "prompt[1]"),
    (b'{"prompt": "a", "n": -1}', "n: -1"),
    (b'{"prompt": "a", "n": 4000000000}', "n: 4000000000"),
    (b'{"prompt": "a", "max_tokens": 1.5}', "max_tokens"),
    (b'{"prompt": "a", "state_blob": "AAAA"}', "state"),
    (b'{"prompt": "a", "state_blob": "%%%"}', "base64"),
    (b'{"prompt": "a", "response_format": {"type": "json_schema"}}', "response_format"),
    (b'{"prompt": "a", "regex": "("}', "regex"),
    (b'{"prompt": "a", "model": "\\u0000"}', "not served"),
], ids=range(22))
def test_bad_bodies_are_told_what_is_wrong(server, body, names):
    status, answer, _ = ask(server, "POST", "/v1/completions", body)
    assert status in (400, 404), answer
    assert names in answer["error"]["message"]


def test_protocol_errors(server):
    ok = b'{"prompt":"a","max_tokens":1}'
    size = f"Content-Length: {len(ok)}"

    def status(data: bytes) -> int:
        answer = raw(server, data)
        return int(answer.split()[1]) if answer else 0

    close = "Connection: close"
    assert status(post(ok, size, close)) == 200
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(ok), ok)
    assert status(post(chunk, "Transfer-Encoding: chunked", close)) == 200
    # What two readers could take for two different things.
    assert status(post(ok, size, size)) == 400
    assert status(post(ok, size, "Transfer-Encoding: chunked")) == 400
    assert status(post(ok, "Transfer-Encoding: gzip, chunked")) == 501
    assert status(post(ok, "Content-Length: +29")) == 400
    assert status(post(ok, "Content-Length: 99999999999999999999999")) == 400
    assert status(post(ok)) == 411
    assert status(post(b"", "Content-Length: 100001")) == 413
    huge = b"%x\r\n%s\r\n" % (60000, b" " * 60000)
    assert status(post(huge * 3 + b"0\r\n\r\n", "Transfer-Encoding: chunked")) == 413
    assert status(post(ok, size, "Content-Encoding: gzip")) == 415
    assert status(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /") == 400
    assert status(b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nConnection: close\r\n\r\n") == 414
    assert status(b"nonsense\r\n\r\n") == 400
    assert status(b"GET /health HTTP/1.1\r\nRange: bytes=0-0,0-0,0-0\r\nConnection: close\r\n\r\n") == 200
    assert status(b"GET / HTTP/9.9\r\n\r\n") == 400
    assert ask(server, "POST", "/v1/completions", "{}", {"Content-Type": "text/plain"})[0] == 415
    assert ask(server, "GET", "/v1/completions")[0] == 405
    assert ask(server, "GET", "/v2")[0] == 404
    assert ask(server, "GET", "/metrics")[0] in (200, 404)
    well(server)


def test_floods_of_headers_and_bytes(server):
    flood = b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(20000))
    assert not raw(server, flood + b"\r\n").startswith(b"HTTP/1.1 200")
    assert not raw(server, b"GET /health HTTP/1.1\r\nX: " + b"y" * (1 << 20)).startswith(b"HTTP/1.1 200")
    rng = random.Random(7)
    for size in (1, 100, 5000, 100000):
        raw(server, rng.randbytes(size))
        raw(server, b"POST /v1/chat/completions HTTP/1.1\r\n" + rng.randbytes(size) + b"\r\n\r\n")
    status, answer, _ = ask(server, "POST", "/v1/chat/completions", rng.randbytes(50000))
    assert status == 400, answer
    well(server)


def test_who_never_finishes_is_shown_out(server):
    with dial(server) as half, dial(server) as body, dial(server) as silent:
        half.sendall(b"GET /health HTTP/1.1\r\nX: ")
        body.sendall(post(b'{"prompt":', "Content-Length: 1000"))
        for _ in range(40):  # a byte now and then does not help
            try:
                half.sendall(b"y")
            except ConnectionError:
                break
            time.sleep(0.05)
        assert b"408" in body.recv(65536)
        assert b" 200 " not in half.recv(65536)
        assert silent.recv(1) == b""  # after http.idle_timeout
    well(server)


def test_idle_connections_give_way_and_streams_do_not(server):
    with dial(server) as stream:
        stream.sendall(post(json.dumps(LONG).encode(), f"Content-Length: {len(json.dumps(LONG))}"))
        assert b"200 OK" in stream.recv(1000)
        held = []
        try:
            for _ in range(300):  # of 64
                held.append(dial(server))
            assert ask(server, "GET", "/health")[0] == 200
            assert stream.recv(1000)
        finally:
            for sock in held:
                sock.close()
        assert stream.recv(1000)
    well(server)


def test_beyond_the_connections_there_is_503(servers, bundled_model):
    server = servers(bundled_model, "--http-max-connections", "3")
    streams = [dial(server) for _ in range(3)]
    for stream in streams:
        stream.sendall(post(json.dumps(LONG).encode(), f"Content-Length: {len(json.dumps(LONG))}"))
        assert b"200 OK" in stream.recv(1000)
    answer = raw(server, b"")
    assert answer.startswith(b"HTTP/1.1 503") and b"Retry-After" in answer
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "overloaded"
    for stream in streams:
        assert stream.recv(1000)
        stream.close()
    well(server)


def test_a_reader_that_does_not_read_is_let_go(server):
    with dial(server) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps({**LONG, "logprobs": 20}).encode()
        stream.sendall(post(body, f"Content-Length: {len(body)}"))
        assert b"200 OK" in stream.recv(1000)
        # It holds a slot until http.write_timeout, and no longer.
        wait_until(lambda: capacity(server).running == 0, "its slot is free")
    well(server)


def test_a_pipelined_second_request_is_answered(server):
    body = b'{"prompt":"a","max_tokens":2}'
    one = post(body, f"Content-Length: {len(body)}")
    answer = raw(server, one + one.replace(b"Host: x", b"Host: x\r\nConnection: close"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_http_1_0_streams_until_the_end_of_the_connection(server):
    body = json.dumps({**LONG, "max_tokens": 3}).encode()
    answer = raw(server, post(body, f"Content-Length: {len(body)}").replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, events = answer.split(b"\r\n\r\n", 1)
    assert b"chunked" not in head and events.endswith(b"data: [DONE]\n\n")


def test_other_origins(server):
    def origins(origin: str, method: str = "OPTIONS"):
        status, _, headers = ask(server, method, "/v1/models", None, {"Origin": origin})
        return status, headers.get("Access-Control-Allow-Origin")

    assert origins("https://chat.example") == (204, "https://chat.example")
    assert origins("https://chat.example", "GET") == (200, "https://chat.example")
    assert origins("https://evil.example") == (403, None)
    assert origins("https://evil.example", "GET") == (200, None)


def test_health_is_true_while_draining(servers, bundled_model):
    server = servers(bundled_model, "--drain-propagation", "2s")
    assert ask(server, "GET", "/health")[:2] == (200, {"status": "ok"})
    connection = connect(server)
    body = json.dumps({**LONG, "max_tokens": 100})
    connection.request("POST", "/v1/completions", body, JSON)
    response = connection.getresponse()
    server.signal(signal.SIGTERM)
    wait_until(lambda: ask(server, "GET", "/health")[0] == 503, "health says so")
    assert "draining" in ask(server, "GET", "/health")[1]["error"]["message"]
    assert response.read().endswith(b"data: [DONE]\n\n")  # what ran has finished
    assert server.wait_exit() == 0


def test_256_streams_at_once(servers, bundled_model):
    server = servers(bundled_model, "--max-queued-requests", "300")
    body = json.dumps({"prompt": "Once upon", "max_tokens": 24, "seed": 3, "stream": True})
    gate = threading.Barrier(256)

    def one(_: int) -> bytes:
        connection = connect(server)
        gate.wait(PATIENCE)
        connection.request("POST", "/v1/completions", body, JSON)
        response = connection.getresponse()
        assert response.status == 200
        events = [json.loads(line[6:]) for line in response.read().split(b"\n\n")
                  if line.startswith(b"data: {")]
        connection.close()
        return "".join(e["choices"][0]["text"] for e in events)

    with concurrent.futures.ThreadPoolExecutor(256) as pool:
        texts = list(pool.map(one, range(256)))
    assert len(set(texts)) == 1 and texts[0]
    well(server)


def test_5000_connects_leave_nothing(server):
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    well(server)
    before = descriptors()
    for i in range(5000):
        with dial(server) as sock:
            if i % 3 == 0:
                sock.sendall(b"GET /hea")
            elif i % 3 == 1:
                sock.sendall(b"GET /health HTTP/1.1\r\n\r\n")
    well(server)
    wait_until(lambda: descriptors() <= before + 4, "descriptors are given back")
