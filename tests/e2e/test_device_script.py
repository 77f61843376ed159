"""tests/device.sh without a GPU: its pack runs anywhere, and its table says what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from harness import BUILD, REPO

SCRIPT = REPO / "tests" / "device.sh"
REPORT = REPO / "tests" / "device" / "report.py"


def run(*command, env=None):
    return subprocess.run(
        [str(word) for word in command], env=env, capture_output=True, text=True, cwd=REPO, check=False
    )


def test_help_names_every_section():
    done = run(SCRIPT, "--help")
    assert done.returncode == 0
    for word in ("pack", "machine", "correct", "sanitize", "bench", "fla", "OSDN_DEVICE_SECONDS"):
        assert word in done.stdout


def test_unknown_section_is_refused():
    done = run(SCRIPT, "corect")
    assert done.returncode == 2
    assert "corect" in done.stderr


@pytest.mark.slow
def test_pack_runs_with_nothing_but_what_it_carries(tmp_path):
    """Unpacked and started in an empty environment, with its own libraries."""
    environment = dict(os.environ, OSDN_BUILD_DIR=str(BUILD), XZ_OPT="-0")
    pack = tmp_path / "pack"
    done = run(SCRIPT, "pack", "--no-build", "--wheels", tmp_path, "--into", pack, env=environment)
    assert done.returncode == 0, done.stderr
    size = sum(file.stat().st_size for file in pack.iterdir())
    assert size < 48 << 20, "what travels to a GPU machine is limited to 64 MiB"

    out = tmp_path / "out"
    bare = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "OUT": str(out), "OSDN_DEVICE_BACKEND": "cpu"}
    done = run("bash", pack / "device.sh", "machine", env=bare)
    assert done.returncode == 0, done.stdout
    assert "osdn-mini" in done.stdout and "1 of 1 steps passed" in done.stdout
    results = json.loads((out / "results.json").read_text())
    assert [(step["name"], step["status"]) for step in results["steps"]] == [("machine", "PASS")]
    assert "osdn-mini" in (out / "device.log").read_text()
    unpacked = next(tmp_path.glob("osdn-device-*"))
    assert (unpacked / "lib" / "libdnnl.so.2").exists()
    assert not list((unpacked / "lib").glob("libc.so*")), "the C library is the machine's own"


def bench_of(model, milliseconds):
    """What osdn-tools bench --json says, as far as the report reads it."""
    decode = {
        "batch": 64,
        "position": 1000,
        "tokens_per_s": 64 / milliseconds * 1e3,
        "bytes_per_token": 1e9 / 64,
        "seconds_per_step": [milliseconds * 1e-3] * 3,
        "latency_vs_first_position": 1.0,
    }
    prefill = {"prompt": 8192, "tokens_per_s": 8192 / 0.05, "seconds": [0.05, 0.04, 0.06]}
    return {
        "model": model,
        "dtype": "bf16",
        "backend": "cuda: a GPU",
        "load_seconds": 1.0,
        "first_token_seconds": 1.5,
        "decode": [decode],
        "prefill": [prefill],
    }


@pytest.fixture
def measured(tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    ceilings = dict.fromkeys(
        ("gemm_340m_tflops", "gemm_1b3_tflops", "to_device_gbps", "to_host_gbps"), 50.0
    )
    contents = {
        "ceilings": {"copy_gbps": 2000.0, "gemm_bf16_tflops": 800.0, **ceilings},
        "bench_340m": bench_of("osdn-340m", 1.0),
        "mixer": {"chunk.8x2048.H8.D128.osdn.us": 200.0, "chunk.8x2048.H8.D128.delta.us": 160.0},
        "fla": {
            "cases": {
                "chunk.8x2048.H8.D128": {"us": 420.0, "graph_us": 300.0},
                "chunk.1x8192.H16.D256": {"error": "OutOfResources: shared memory"},
                "generate.B64": {"ms_per_token": 30.0},
                "ttft.8192": {"ms": 100.0},
            }
        },
        "parity": {"checks": [{"name": "f32 logits", "passed": True, "max_abs": 2e-5}]},
    }
    for name, content in contents.items():
        (parts / f"{name}.json").write_text(json.dumps(content))
    return parts


def table(parts, steps, out):
    file = parts.parent / "steps.tsv"
    file.write_text("".join(f"{name}\t{status}\t{seconds}\n" for name, status, seconds in steps))
    return run(sys.executable, REPORT, "table", "--parts", parts, "--steps", file, "--json", out)


def row_of(text, beginning):
    return next(line for line in text.splitlines() if line.strip().startswith(beginning)).split()


def test_table_puts_figures_beside_their_ceilings(measured, tmp_path):
    done = table(measured, [("op tests", "PASS", 3)], tmp_path / "results.json")
    assert done.returncode == 0, done.stderr
    # 1 GB a step of 1 ms is 1000 GB/s, half of the copy bandwidth.
    assert row_of(done.stdout, "64      1000")[2:6] == ["64000.0", "1.000", "1000", "0.500"]
    # osdn, delta, osdn/delta, fla, its graph, fla's graph over osdn.
    assert row_of(done.stdout, "chunk.8x2048.H8.D128")[1:] == [
        "200.0", "160.0", "1.250", "420.0", "300.0", "1.50",
    ]  # fmt: skip
    assert "OutOfResources" in done.stdout
    assert row_of(done.stdout, "340M generate.B64")[-1] == "30.00x"
    assert row_of(done.stdout, "340M ttft.8192")[-1] == "2.00x"
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["ceilings"]["copy_gbps"] == 2000.0
    assert results["steps"] == [{"name": "op tests", "status": "PASS", "seconds": 3}]


@pytest.mark.parametrize("status", ["FAIL (1)", "stopped after 60 s", "missing: cuda_mixer_bench", "no time left"])
def test_table_fails_for_what_did_not_pass(measured, tmp_path, status):
    steps = [("op tests", "PASS", 3), ("mixer kernels", status, 60), ("fla", "skipped: no wheels", 0)]
    done = table(measured, steps, tmp_path / "results.json")
    assert done.returncode == 1
    assert "2 of 3 steps passed or skipped" in done.stdout


def test_table_of_nothing_fails(tmp_path):
    (tmp_path / "parts").mkdir()
    assert table(tmp_path / "parts", [], tmp_path / "results.json").returncode == 1
