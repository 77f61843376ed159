"""How many replicas of osdn-server a load needs, by simulation on measured service times.

    python3 tools/python/capacity.py --profile cpu-340m-int8 --rate 20
    python3 tools/python/capacity.py --bench bench.json --rate 500 --prompt 800 --answer 200

`--bench` reads what `osdn-tools bench --json` printed on the machine in question; the profiles are
docs/benchmarks.md's.

The model: requests come at random (Poisson) and go to a replica by the balancer's rule. A replica
runs at most `slots` of them, others wait in its queue. Every step gives each decoding sequence a
token and reads up to `chunk` tokens of the oldest unread prompt: that is the engine's loop, whose
steps take the measured time of the batch plus the chunk's.
Not in it: network, tokenizing, cached prompts (give --prompt without them), slow readers, failures.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import heapq
import json
import math
import random
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Profile:
    """Service times of one replica."""

    steps: tuple[tuple[int, float], ...]  # (sequences that decode, seconds of a step), ascending
    prefill: float  # prompt tokens a second
    chunk: int = 256  # scheduler.max_prefill_tokens

    def step_seconds(self, batch: int) -> float:
        """Linear between measured batches; none is beyond them."""
        if batch == 0:
            return 0.0
        below = self.steps[0]
        for point in self.steps:
            if batch <= point[0]:
                if point[0] == below[0]:
                    return point[1]
                share = (batch - below[0]) / (point[0] - below[0])
                return below[1] + share * (point[1] - below[1])
            below = point
        raise ValueError(f"{batch} sequences: measured were at most {self.steps[-1][0]}")


# docs/benchmarks.md: CPU of 2026-11-24 (2 cores with AMX), H100 of 2026-11-25.
PROFILES = {
    "cpu-340m-bf16": Profile(((1, 1 / 43.3), (16, 16 / 403)), 1_785),
    "cpu-340m-int8": Profile(((1, 1 / 81.3), (16, 16 / 552)), 2_760),
    "h100-340m-bf16": Profile(
        ((1, 0.746e-3), (8, 1.32e-3), (64, 2.64e-3), (256, 6.97e-3)), 290_300, 2048
    ),
    "h100-1.3b-bf16": Profile(
        ((1, 1.58e-3), (8, 2.83e-3), (64, 4.70e-3), (256, 12.2e-3)), 137_200, 2048
    ),
}


def read_bench(path: Path, chunk: int) -> Profile:
    """From `osdn-tools bench --json`: decode at the first position, the longest prompt."""
    report = json.loads(path.read_text())
    steps: dict[int, float] = {}
    for row in report["decode"]:
        steps.setdefault(row["batch"], row["seconds_per_step"])
    prefill = max(report["prefill"], key=lambda row: row["prompt"])["tokens_per_s"]
    return Profile(tuple(sorted(steps.items())), prefill, chunk)


@dataclasses.dataclass(frozen=True)
class Load:
    """What comes. Lengths are log-normal around their means, at least one token."""

    rate: float  # requests a second
    prompt: float  # tokens
    answer: float
    spread: float = 0.5  # standard deviation over mean; 0: always the mean


@dataclasses.dataclass(frozen=True)
class Result:
    """Of the requests after the warm-up."""

    requests: int
    refused: int
    wait_mean: float  # seconds in the queue
    first_token: tuple[float, float]  # median and 95th percentile, seconds from arrival
    token: tuple[float, float]  # of each request's mean time from token to token
    use: float  # share of the slots that were taken


def percentiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    if not ordered:
        return math.inf, math.inf
    return tuple(ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95))


class Request:
    __slots__ = ("arrived", "admitted", "first", "prompt", "answer", "counts")

    def __init__(self, arrived: float, prompt: float, answer: float, counts: bool) -> None:
        self.arrived, self.prompt, self.answer, self.counts = arrived, prompt, answer, counts
        self.admitted = self.first = 0.0


class Replica:
    """One engine. Its clock `done` counts steps: between two events each takes the same time."""

    def __init__(self, profile: Profile, slots: int, queue_limit: int) -> None:
        self.profile, self.slots, self.queue_limit = profile, slots, queue_limit
        self.queue: collections.deque[Request] = collections.deque()
        self.unread: collections.deque[Request] = (
            collections.deque()
        )  # their prompts; the first is being read
        self.read_at = 0.0  # step at which that one is read
        self.decoding: list[
            tuple[float, int, Request]
        ] = []  # (step of its last token, tie-breaker, request)
        self.done = 0.0
        self.now = 0.0
        self.serial = 0
        self.version = 0  # of what it is doing: an event foreseen before is stale
        self.slot_seconds = 0.0

    @property
    def running(self) -> int:
        return len(self.unread) + len(self.decoding)

    @property
    def pending(self) -> int:
        return self.running + len(self.queue)

    def step_time(self) -> float:
        reading = self.profile.chunk / self.profile.prefill if self.unread else 0.0
        return self.profile.step_seconds(len(self.decoding)) + reading

    def advance(self, now: float) -> None:
        if self.running:
            self.done += (now - self.now) / self.step_time()
            self.slot_seconds += (now - self.now) * self.running
        self.now = now

    def admit(self, request: Request) -> None:
        request.admitted = self.now
        if not self.unread:
            self.read_at = self.done + request.prompt / self.profile.chunk
        self.unread.append(request)

    def offer(self, request: Request, now: float) -> bool:
        """False: the queue is full."""
        self.advance(now)
        if self.running >= self.slots and len(self.queue) >= self.queue_limit:
            return False
        self.version += 1
        if self.running < self.slots:
            self.admit(request)
        else:
            self.queue.append(request)
        return True

    def next_event(self) -> float:
        """When a prompt will be read or an answer finished, if nothing comes between."""
        until = [self.read_at] if self.unread else []
        if self.decoding:
            until.append(self.decoding[0][0])
        return self.now + max(0.0, min(until) - self.done) * self.step_time()

    def event(self, now: float) -> tuple[Request | None, Request | None]:
        """The request whose first token comes now, and the one that ends now."""
        self.advance(now)
        self.version += 1
        if self.unread and (not self.decoding or self.read_at <= self.decoding[0][0]):
            self.done = self.read_at
            request = self.unread.popleft()
            request.first = now
            self.serial += 1
            heapq.heappush(self.decoding, (self.done + request.answer - 1, self.serial, request))
            if self.unread:
                self.read_at = self.done + self.unread[0].prompt / self.profile.chunk
            return request, None
        self.done, _, request = heapq.heappop(self.decoding)
        if self.queue:
            self.admit(self.queue.popleft())
        return None, request


def choose(replicas: list[Replica], policy: str, turn: int, rng: random.Random) -> Replica:
    if policy == "round_robin":
        return replicas[turn % len(replicas)]
    if policy == "random":
        return rng.choice(replicas)
    return min(rng.choice(replicas), rng.choice(replicas), key=lambda replica: replica.pending)


def simulate(
    profile: Profile,
    load: Load,
    replicas: int,
    slots: int,
    *,
    queue_limit: int = 256,
    policy: str = "round_robin",
    requests: int = 20_000,
    seed: int = 1,
) -> Result:
    """Runs `requests`, a quarter more before to warm up. Equal arguments give equal results."""
    profile.step_seconds(slots)  # that many were measured
    lengths, arrivals, balancer = (
        random.Random(f"{seed} {what}") for what in ("lengths", "arrivals", "balancer")
    )
    sigma = math.sqrt(math.log(1 + load.spread**2))

    def length(mean: float) -> float:
        return max(1.0, mean * math.exp(lengths.gauss(0, 1) * sigma - sigma**2 / 2))

    pool = [Replica(profile, slots, queue_limit) for _ in range(replicas)]
    events: list[tuple[float, int, int]] = []
    warm_up = requests // 4
    waits, first_tokens, tokens, refused, now = [], [], [], 0, 0.0

    def run_until(limit: float) -> None:
        while events and events[0][0] <= limit:
            time, index, version = heapq.heappop(events)
            replica = pool[index]
            if replica.version != version:
                continue
            begun, ended = replica.event(time)
            if begun is not None and begun.counts:
                waits.append(begun.admitted - begun.arrived)
                first_tokens.append(begun.first - begun.arrived)
            if ended is not None and ended.counts and ended.answer > 1:
                tokens.append((time - ended.first) / (ended.answer - 1))
            if replica.running:
                heapq.heappush(events, (replica.next_event(), index, replica.version))

    index_of = {id(replica): index for index, replica in enumerate(pool)}
    for turn in range(warm_up + requests):
        now += arrivals.expovariate(load.rate)
        run_until(now)
        request = Request(now, length(load.prompt), length(load.answer), turn >= warm_up)
        replica = choose(pool, policy, turn, balancer)
        if replica.offer(request, now):
            heapq.heappush(events, (replica.next_event(), index_of[id(replica)], replica.version))
        elif request.counts:
            refused += 1
    for replica in pool:
        replica.advance(now)
    use = sum(replica.slot_seconds for replica in pool) / (now * slots * replicas)
    run_until(math.inf)
    return Result(
        requests,
        refused,
        sum(waits) / max(1, len(waits)),
        percentiles(first_tokens),
        percentiles(tokens),
        use,
    )


@dataclasses.dataclass(frozen=True)
class Target:
    """What the 95th percentiles may be at most, in seconds; nothing may be refused."""

    first_token: float
    token: float

    def met(self, result: Result) -> bool:
        return (
            result.refused == 0
            and result.first_token[1] <= self.first_token
            and result.token[1] <= self.token
        )


def replicas_needed(
    profile: Profile, load: Load, target: Target, slots: int, limit: int = 10_000, **options
) -> tuple[int, Result] | None:
    """The fewest replicas that meet the target, within 1%; None: not even `limit` of them do."""

    def run(count: int) -> Result:
        return simulate(profile, load, count, slots, **options)

    # What it would take if every step were full: fewer cannot do.
    full = profile.step_seconds(slots) / slots
    high = max(1, math.floor(load.rate * (load.answer * full + load.prompt / profile.prefill)))
    low, result = 0, run(high)
    while not target.met(result):
        if high >= limit:
            return None
        low, high = high, min(limit, max(high + 1, math.ceil(high * 1.25)))
        result = run(high)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        tried = run(middle)
        if target.met(tried):
            high, result = middle, tried
        else:
            low = middle
    return high, result


def plot(path: Path, curves: dict[str, list[tuple[float, int]]], title: str) -> None:
    import matplotlib  # only here: `pip install matplotlib`

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for name, points in curves.items():
        axes.loglog(*zip(*points), marker="o", markersize=3, label=name)
    axes.set(xlabel="requests a second", ylabel="replicas needed", title=title)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--profile", choices=PROFILES)
    source.add_argument("--bench", type=Path, help="output of osdn-tools bench --json")
    source.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the replicas that each profile needs by rate (.png or .svg)",
    )
    parser.add_argument("--rate", type=float, help="requests a second")
    parser.add_argument(
        "--prompt",
        type=float,
        default=500,
        help="mean tokens of a prompt that are not cached (500)",
    )
    parser.add_argument("--answer", type=float, default=150, help="mean tokens of an answer (150)")
    parser.add_argument(
        "--spread", type=float, default=0.5, help="their standard deviation over the mean (0.5)"
    )
    parser.add_argument(
        "--slots", type=int, help="scheduler.max_slots (the largest batch measured)"
    )
    parser.add_argument(
        "--chunk", type=int, default=256, help="scheduler.max_prefill_tokens, with --bench (256)"
    )
    parser.add_argument(
        "--first-token", type=float, default=2, help="95th percentile at most, seconds (2)"
    )
    parser.add_argument(
        "--token", type=float, default=0.1, help="from token to token, likewise (0.1)"
    )
    parser.add_argument(
        "--policy", choices=["round_robin", "random", "two_choices"], default="round_robin"
    )
    parser.add_argument(
        "--replicas", type=int, help="simulate so many instead of looking for the fewest"
    )
    parser.add_argument("--requests", type=int, default=20_000, help="simulated ones (20000)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.plot is None and arguments.rate is None:
        parser.error("--rate is needed")
    return arguments


def describe(count: int, slots: int, result: Result) -> str:
    return (
        f"{count} replicas of {slots} slots: {100 * result.use:.0f}% of the slots taken, "
        f"{result.refused} of {result.requests} refused\n"
        f"first token  median {result.first_token[0]:.3f} s, 95% {result.first_token[1]:.3f} s\n"
        f"token        median {1000 * result.token[0]:.1f} ms, 95% {1000 * result.token[1]:.1f} ms"
    )


def main() -> None:
    arguments = parse_arguments()
    target = Target(arguments.first_token, arguments.token)
    options = {"policy": arguments.policy, "seed": arguments.seed}

    def load(rate: float) -> Load:
        return Load(rate, arguments.prompt, arguments.answer, arguments.spread)

    if arguments.plot is not None:
        curves: dict[str, list[tuple[float, int]]] = {}
        for name, profile in PROFILES.items():
            for rate in (1, 3, 10, 30, 100, 300, 1000, 3000):
                slots = profile.steps[-1][0]
                # A minute of it, longer than any answer takes.
                found = replicas_needed(
                    profile, load(rate), target, slots, requests=max(5_000, 60 * rate), **options
                )
                if found is not None:
                    curves.setdefault(name, []).append((rate, found[0]))
                    print(name, rate, found[0], flush=True)
        plot(
            arguments.plot,
            curves,
            f"{arguments.prompt:.0f} + {arguments.answer:.0f} tokens; 95%: first token {target.first_token:g} s, "
            f"token {1000 * target.token:.0f} ms",
        )
        return
    profile = (
        PROFILES[arguments.profile]
        if arguments.profile
        else read_bench(arguments.bench, arguments.chunk)
    )
    slots = arguments.slots or profile.steps[-1][0]
    options["requests"] = arguments.requests
    if arguments.replicas is not None:
        print(
            describe(
                arguments.replicas,
                slots,
                simulate(profile, load(arguments.rate), arguments.replicas, slots, **options),
            )
        )
        return
    found = replicas_needed(profile, load(arguments.rate), target, slots, **options)
    if found is None:
        raise SystemExit(
            "no number of replicas meets this: one alone, unloaded, is too slow for the target"
        )
    print(describe(found[0], slots, found[1]))


if __name__ == "__main__":
    main()
