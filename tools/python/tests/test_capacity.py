"""The capacity simulation against results that are known another way."""

import json
import math

import pytest

import capacity
from capacity import Load, Profile, Replica, Request, Target, simulate


def test_step_times_lie_between_measured_batches() -> None:
    profile = Profile(((1, 0.010), (16, 0.040)), 1000)
    assert [profile.step_seconds(b) for b in (0, 1, 6, 16)] == pytest.approx(
        [0, 0.010, 0.020, 0.040]
    )
    with pytest.raises(ValueError, match="at most 16"):
        profile.step_seconds(17)


def test_a_step_is_shared_as_worked_out_by_hand() -> None:
    # A step takes 1 s alone, 1.5 s for two; a chunk is the whole prompt and takes 1 s.
    replica = Replica(Profile(((1, 1.0), (2, 1.5)), 256), slots=2, queue_limit=9)
    replica.offer(Request(0.0, 256, 4, True), 0.0)
    assert replica.next_event() == 1.0  # the prompt is read: the first token
    assert replica.event(1.0)[0] is not None
    replica.offer(Request(2.0, 256, 2, True), 2.0)  # one token later
    assert replica.next_event() == 4.0  # a decode step and the chunk together: 2 s
    assert replica.event(4.0)[0] is not None
    # Both now have one token to go, together in 1.5 s.
    assert replica.next_event() == 5.5
    replica.event(5.5)
    assert replica.next_event() == 5.5


def test_one_slot_waits_as_queueing_theory_says() -> None:
    # M/D/1: 0.5 s of prompt and 5 more tokens of 0.1 s; half of the time busy.
    profile = Profile(((1, 0.1),), 512)
    result = simulate(
        profile, Load(0.5, 256, 6, spread=0), 1, 1, queue_limit=10_000, requests=60_000, seed=3
    )
    service, use = 1.0, 0.5
    assert result.use == pytest.approx(use, rel=0.03)
    assert result.wait_mean == pytest.approx(use * service / (2 * (1 - use)), rel=0.05)
    assert result.token == pytest.approx((0.1, 0.1))
    assert result.first_token[0] >= 0.5


def test_the_seed_decides() -> None:
    arguments = (capacity.PROFILES["cpu-340m-int8"], Load(6, 300, 80), 3, 16)
    once = simulate(*arguments, requests=2_000, seed=5)
    assert once == simulate(*arguments, requests=2_000, seed=5)
    assert once != simulate(*arguments, requests=2_000, seed=6)


def test_overload_is_refused_and_the_better_balancer_waits_less() -> None:
    profile = capacity.PROFILES["cpu-340m-int8"]
    assert simulate(profile, Load(50, 300, 80), 2, 16, queue_limit=20, requests=2_000).refused > 100
    waits = {
        policy: simulate(profile, Load(20, 300, 80), 6, 16, policy=policy, requests=4_000).wait_mean
        for policy in ("random", "two_choices")
    }
    assert waits["two_choices"] < waits["random"]


def test_the_fewest_replicas_that_meet_the_target() -> None:
    profile, load, target = capacity.PROFILES["cpu-340m-int8"], Load(20, 500, 150), Target(2, 0.1)
    count, result = capacity.replicas_needed(profile, load, target, 16, requests=3_000)
    assert target.met(result)
    assert not target.met(simulate(profile, load, count - 1, 16, requests=3_000))
    assert (
        capacity.replicas_needed(profile, load, Target(0.01, 0.1), 16, limit=64, requests=500)
        is None
    )


def test_reads_what_bench_prints(tmp_path) -> None:
    report = {
        "decode": [
            {"batch": 4, "position": 1000, "seconds_per_step": 0.04},
            {"batch": 1, "position": 1000, "seconds_per_step": 0.02},
            {"batch": 1, "position": 100000, "seconds_per_step": 0.03},
        ],
        "prefill": [
            {"prompt": 512, "tokens_per_s": 900.0},
            {"prompt": 2048, "tokens_per_s": 1000.0},
        ],
    }
    (tmp_path / "bench.json").write_text(json.dumps(report))
    profile = capacity.read_bench(tmp_path / "bench.json", 256)
    assert profile == Profile(((1, 0.02), (4, 0.04)), 1000.0, 256)


def test_percentiles() -> None:
    assert capacity.percentiles(list(range(100))) == (50, 95)
    assert capacity.percentiles([]) == (math.inf, math.inf)
