"""The sampler against NumPy: what it draws from, on random logits, and that it draws from that."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from harness import BUILD

PROBE = BUILD / "bin" / "sampler_probe"


@pytest.fixture(scope="module")
def probe():
    process = subprocess.Popen([PROBE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(logits, params, **more):
        values = [None if np.isneginf(x) else float(x) for x in logits]
        json.dump({"logits": values, "params": params, **more}, process.stdin)
        process.stdin.write("\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    assert process.wait(30) == 0


def processed(logits, params, prompt=(), completion=()):
    """Penalties and biases, as docs/api.md words them."""
    x = logits.astype(np.float64).copy()
    window = params.get("penalty_window", 1024)
    text = [(t, False) for t in prompt][-window:] + [(t, True) for t in completion]
    text = text[-window:]
    for token in {t for t, _ in text}:
        penalty = params.get("repetition_penalty", 1.0)
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
        count = sum(1 for t, own in text if own and t == token)
        if count:
            x[token] -= params.get("frequency_penalty", 0) * count
            x[token] -= params.get("presence_penalty", 0)
    for token, bias in params.get("logit_bias", {}).items():
        x[int(token)] += bias
    return x


def keep_mass(p, order, wanted):
    """Those of `order` that come before `wanted` of the mass of p is reached."""
    before = np.cumsum(p[order]) - p[order]
    return order[before < wanted * p.sum()]


def reference(x, params):
    """The distribution after all filters: temperature, top_k, typical_p, top_p, min_p."""
    p = np.exp((x - x.max()) / params.get("temperature", 1.0))
    p /= p.sum()

    def only(keep):
        kept = np.zeros_like(p)
        kept[keep] = p[keep]
        return kept / kept.sum()

    if params.get("top_k"):
        p = only(np.argsort(-x, kind="stable")[:params["top_k"]])
    if params.get("typical_p", 1) < 1:
        alive = np.flatnonzero(p)
        surprise = -np.log(p[alive])
        distance = np.abs(surprise - (p[alive] * surprise).sum())
        p = only(keep_mass(p, alive[np.argsort(distance, kind="stable")], params["typical_p"]))
    if params.get("top_p", 1) < 1:
        p = only(keep_mass(p, np.argsort(-p, kind="stable"), params["top_p"]))
    if params.get("min_p"):
        p = only(np.flatnonzero(p >= params["min_p"] * p.max()))
    return p


def random_params(rng) -> dict:
    params = {"temperature": float(rng.choice([0.2, 0.7, 1.0, 1.6, 4.0])),
              "seed": int(rng.integers(0, 2**63))}
    options = {"top_k": lambda: int(rng.integers(2, 400)),
               "top_p": lambda: float(rng.uniform(0.05, 0.999)),
               "min_p": lambda: float(rng.uniform(0.001, 0.5)),
               "typical_p": lambda: float(rng.uniform(0.05, 0.999)),
               "repetition_penalty": lambda: float(rng.uniform(0.5, 2)),
               "presence_penalty": lambda: float(rng.uniform(-2, 2)),
               "frequency_penalty": lambda: float(rng.uniform(-2, 2)),
               "penalty_window": lambda: int(rng.integers(1, 60)),
               "logit_bias": lambda: {str(t): float(rng.uniform(-50, 50))
                                      for t in rng.integers(0, 50, 3)}}
    for name, draw in options.items():
        if rng.random() < 0.35:
            params[name] = draw()
    return params


def test_distribution_is_numpys(probe):
    seed = np.random.SeedSequence().entropy
    rng = np.random.default_rng(seed)
    for case in range(300):
        vocab = int(rng.choice([2, 50, 255, 256, 257, 4096]))
        logits = rng.normal(0, rng.choice([0.3, 1, 3, 10]), vocab).astype(np.float32)
        if rng.random() < 0.3:
            logits[rng.integers(0, vocab, vocab // 3)] = -np.inf
            logits[rng.integers(0, vocab)] = 1.5
        params = random_params(rng)
        params["logit_bias"] = {t: b for t, b in params.get("logit_bias", {}).items()
                                if int(t) < vocab}
        prompt = rng.integers(0, min(vocab, 60), 40).tolist()
        completion = rng.integers(0, min(vocab, 60), 40).tolist()
        answer = probe(logits, params, prompt=prompt, completion=completion)
        expected = reference(processed(logits, params, prompt, completion), params)
        found = np.zeros(vocab)
        found[answer["tokens"]] = answer["weights"]
        found /= found.sum()
        # float32 against float64: a token right on a border may fall to either side of it.
        assert np.abs(found - expected).max() < 1e-4 or \
            np.count_nonzero((found > 0) != (expected > 1e-30)) <= 1, (seed, case, params)


@pytest.mark.parametrize("params", [
    {"temperature": 1.3}, {"top_k": 9}, {"top_p": 0.7}, {"min_p": 0.08}, {"typical_p": 0.6},
    {"temperature": 1.5, "top_k": 40, "typical_p": 0.95, "top_p": 0.9, "min_p": 0.02}])
def test_draws_follow_the_distribution(probe, params):
    """Chi-square with fixed seeds: the outcome is always the same."""
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 2, 300).astype(np.float32)
    expected = reference(logits.astype(np.float64), params)
    draws = 20_000
    for choice in (0, 3):
        drawn = probe(logits, {**params, "seed": 99}, draws=draws, choice=choice)["drawn"]
        counts = np.bincount(drawn, minlength=300)
        assert counts[expected == 0].sum() == 0
        common = expected * draws >= 5
        chi_square = ((counts - expected * draws)[common]**2 / (expected * draws)[common]).sum()
        freedom = max(common.sum() - 1, 1)
        assert chi_square < freedom + 4.5 * np.sqrt(2 * freedom), (params, choice)


def test_choices_draw_independently(probe):
    logits = np.zeros(64, np.float32)
    first, second = (probe(logits, {"seed": 5}, draws=200, choice=c)["drawn"] for c in (0, 1))
    assert first != second
    assert first == probe(logits, {"seed": 5}, draws=200, choice=0)["drawn"]
