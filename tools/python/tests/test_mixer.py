"""The mixer: golden vectors, chunk form against the token recurrence, gradients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from osdn.mixer import Preconditioner, UnitLowerInverse, chunk_mixer, token_mixer

NAMES = ["small", "wide", "head128", "apf", "apf_decay", "box", "neg_eigval"]


def random_case(length: int, seed: int = 0, heads: int = 2, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(draw(2, heads, length, size), dim=-1) for _ in "qk")
    v, s = draw(2, heads, length, 5), draw(2, heads, size, 5)
    beta = draw(2, heads, length).sigmoid()
    log_alpha = torch.nn.functional.logsigmoid(draw(2, heads, length) + 4)
    d = 1 + 0.2 * draw(2, heads, size).tanh()
    return [q, k, v, beta, log_alpha, s, d]


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1)).item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["token", "chunk16", "chunk64"])
def test_golden(golden: Path, name: str, form: str) -> None:
    with safe_open(str(golden / f"mixer_{name}.safetensors"), "pt") as file:
        meta = {key: json.loads(value) for key, value in file.metadata().items()
                if key in ("eta", "eps", "d_min", "d_max", "anchor")}
        case = {key: file.get_tensor(key).double() for key in file.keys()}
    q, k, v = (case[key][None, None] for key in "qkv")
    arguments = (q, k, v, case["beta"][None, None], case["alpha"].log()[None, None],
                 case["S0"].T[None, None], case["d0"][None, None], Preconditioner(**meta))
    out = (token_mixer(*arguments) if form == "token"
           else chunk_mixer(*arguments, chunk=int(form[5:])))
    assert error(out.o[0, 0], case["o"]) < 1e-5
    assert error(out.s[0, 0].T, case["S"]) < 1e-5
    assert error(out.d[0, 0], case["d"]) < 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.003, 0.5, 30.0])
@pytest.mark.parametrize("length", [1, 15, 64, 131])
def test_chunk_equals_tokens(eta: float, length: int) -> None:
    case = random_case(length)
    constants = Preconditioner(eta=eta, anchor=0.9)
    tokens = token_mixer(*case, constants)
    chunks = chunk_mixer(*case, constants, chunk=16)
    for actual, expected in zip(chunks[:3], tokens[:3], strict=True):
        assert error(actual, expected) < 1e-11


@pytest.mark.parametrize("eta", [0.3, 30.0])
def test_fresh_sequences_inside_a_row(eta: float) -> None:
    q, k, v, beta, log_alpha, s, d = random_case(64)
    constants = Preconditioner(eta=eta, anchor=0.9)
    keep = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]])
    out = chunk_mixer(q, k, v, beta, log_alpha, s, d, constants, 16, keep)
    fresh = torch.zeros_like(s[:1]), torch.ones_like(d[:1])
    tail = token_mixer(*(x[:1, :, 32:] for x in (q, k, v, beta, log_alpha)), *fresh, constants)
    whole = token_mixer(*(x[1:] for x in (q, k, v, beta, log_alpha)), *fresh, constants)
    assert error(out.o[:1, :, 32:], tail.o) < 1e-11
    assert error(out.o[1:], whole.o) < 1e-11
    assert error(out.d, torch.cat([tail.d, whole.d])) < 1e-11


def test_inverse_is_stable_for_repeated_keys() -> None:
    m = torch.ones(64, 64).tril(-1)
    product = UnitLowerInverse.apply(m) @ (torch.eye(64) + m)
    assert error(product, torch.eye(64)) < 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_gradients(eta: float) -> None:
    q, k, v, beta, log_alpha, s, d = random_case(8, heads=1, size=4)
    leaves = [x.requires_grad_() for x in (q, k, v, beta, log_alpha, s, d)]
    constants = Preconditioner(eta=eta)

    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = chunk_mixer(*inputs, constants, chunk=4)
        return out.o, out.s, out.d

    assert torch.autograd.gradcheck(run, leaves)
