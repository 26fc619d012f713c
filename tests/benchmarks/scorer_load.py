"""The scorer service under load: 64 groups at once over the loopback, beside the same scorer in this process.

    python -m tests.benchmarks.scorer_load --base smollm2 --layers 6      # an untrained head: only time is measured
    python -m tests.benchmarks.scorer_load --model runs/quickstart/reward_model
    python -m tests.benchmarks.scorer_load --quick --json load.json       # a tiny random model, under a minute

A group is R responses to one context, asked D dimensions. It is asked in two ways: whole, one request a group, as
GRPO does; and reply by reply, R requests about one context, which the service joins again where they wait together.
Service and process score the same groups in turn, a round each; a round ends with its groups or its time limit.
Latency is what a caller of the service's client waits for one request, with the retries of refused ones; in process,
a request waits for nobody. Exits 1 where the service's rewards are not those of the process.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import Message
from psychepass.scoring import ScoreGroup, Scorer
from reward_model.scorer import GroupScorer
from tests.benchmarks.figures import benchmark_parser
from training.pairs import REWARDED

ROOT = Path(__file__).resolve().parents[2]
QUANTILES = (0.5, 0.95)
TOLERANCE = 1e-4  # fp32 in two processes
WORDS = ("today", "the", "house", "was", "quiet", "again", "and", "nobody", "asked", "how", "my", "week", "had", "been")


class Round(NamedTuple):
    """Seconds each group took, seconds of the whole round, and the rewards in the order of the groups done."""

    latency_s: list[float]
    seconds: float
    rewards: list[list[list[float]]]


def made_groups(args: argparse.Namespace) -> list[ScoreGroup]:
    """Groups of made-up words, all different; contexts of 0.5 to 1.5 times `turns`, as in mid-training."""
    rng = random.Random(args.seed)

    def said(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=words))

    def context() -> tuple[Message, ...]:
        turns = rng.randint(max(1, args.turns // 2), args.turns + args.turns // 2)
        roles = ["user", "assistant"] * (turns - 1) + ["user"]
        return tuple(Message(role=r, content=said(25)) for r in roles)  # type: ignore[arg-type]

    return [
        ScoreGroup(
            context=context(),
            responses=tuple(said(rng.randint(15, 45)) for _ in range(args.responses)),
            dimensions=REWARDED[: args.dimensions],
        )
        for _ in range(args.groups)
    ]


def single(groups: list[ScoreGroup]) -> list[ScoreGroup]:
    """Reply by reply: each response as a group of its own, those of one context in a row."""
    return [g.model_copy(update={"responses": (r,)}) for g in groups for r in g.responses]


def saved_model(args: argparse.Namespace, folder: Path) -> Path:
    """The folder of the model to serve: the named one, or the base's lower layers with a new head."""
    if args.model:
        return Path(args.model)
    from transformers import AutoTokenizer

    from psychepass import weights
    from reward_model import model as models
    from tests.tiny import tiny_model

    base = tiny_model(folder) if args.quick else weights.resolve(args.base)
    model = models.from_base(base, None if args.quick else args.layers, seed=0)
    card = models.save(model, AutoTokenizer.from_pretrained(base), folder / "model", str(base), 4096, 256)
    models.finish(model, folder / "model", card)
    return folder / "model"


@contextmanager
def served(model: Path, folder: Path) -> Iterator[Scorer]:
    """Stage serve-rm in a process of its own, ended with the block."""
    config = folder / "serve.yaml"
    config.write_text(f"run: {folder}\nmodel: {model}\n")
    process = subprocess.Popen([sys.executable, "-m", "psychepass.cli", "serve-rm", str(config)], cwd=ROOT)
    try:
        yield Scorer.of_run(folder, timeout_s=120)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def in_process(scorer: GroupScorer, groups: list[ScoreGroup], limit_s: float) -> Round:
    begun, latency_s, rewards = time.perf_counter(), [], []
    for group in groups:
        start = time.perf_counter()
        if start - begun > limit_s and rewards:
            break
        rewards += scorer.score([group])
        latency_s.append(time.perf_counter() - start)
    return Round(latency_s, time.perf_counter() - begun, rewards)


async def over_http(scorer: Scorer, groups: list[ScoreGroup], concurrency: int, limit_s: float) -> Round:
    """`concurrency` callers, each with one group under way, until none is left or the time is up."""
    latency_s: dict[int, float] = {}
    rewards: dict[int, list[list[float]]] = {}
    left = iter(enumerate(groups))
    begun = time.perf_counter()

    async def caller() -> None:
        for number, group in left:
            start = time.perf_counter()
            if start - begun > limit_s:
                return
            rewards[number] = (await scorer.ascore([group]))[0]
            latency_s[number] = time.perf_counter() - start

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    seconds = time.perf_counter() - begun
    return Round([latency_s[n] for n in sorted(latency_s)], seconds, [rewards[n] for n in sorted(rewards)])


def figures(rounds: dict[str, list[Round]], way: str, replies: int) -> list[dict[str, Any]]:
    """{"name", "value", "low", "high", "n"}: the median over rounds, the least and the most; `n` requests in all.

    `replies`: how many a request holds, out of a group's; a rate counts groups, so that both ways compare.
    """
    found = []

    def add(name: str, values: list[float], n: int) -> None:
        value = float(np.median(values))
        found.append({"name": f"{way}, {name}", "value": value, "low": min(values), "high": max(values), "n": n})

    def rate(r: Round) -> float:
        return len(r.latency_s) / replies / r.seconds

    for place, of_place in rounds.items():
        n = sum(len(r.latency_s) for r in of_place)
        add(f"{place}: groups a second", [rate(r) for r in of_place], n)
        for q in QUANTILES:
            add(f"{place}: latency s, {q:.0%}", [float(np.quantile(r.latency_s, q)) for r in of_place], n)
    service, process = rounds.values()
    ratios = [rate(s) / rate(p) for s, p in zip(service, process, strict=True)]
    add("service / in process: groups a second", ratios, sum(len(r.latency_s) for r in service))
    return found


def difference(rounds: dict[str, list[Round]]) -> float:
    """The largest difference between two rewards of the same reply and dimension."""
    pairs = [(a, b) for s, p in zip(*rounds.values(), strict=True) for a, b in zip(s.rewards, p.rewards, strict=False)]
    return max(float(np.abs(np.array(a) - np.array(b)).max()) for a, b in pairs)


def measure(args: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    """Figures of both ways, and the largest difference between service and process."""
    groups = made_groups(args)
    ways = {"whole": (groups, 1), "reply by reply": (single(groups), args.responses)}
    rounds: dict[str, dict[str, list[Round]]] = {way: {"service": [], "in process": []} for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = saved_model(args, folder)
        scorer = GroupScorer.load(model)
        scorer.score(groups[:1])  # the first call pays for what is made once
        with served(model, folder) as service:
            service.score(groups[:1])
            service.timeout_s = 2 * args.limit_s + 60  # a group waits its turn: never shorter than a round
            for _ in range(args.rounds):
                for way, (asked, _) in ways.items():
                    over = asyncio.run(over_http(service, asked, args.concurrency, args.limit_s))
                    rounds[way]["service"].append(over)
                    rounds[way]["in process"].append(in_process(scorer, asked, args.limit_s))
    found = [row for way, (_, replies) in ways.items() for row in figures(rounds[way], way, replies)]
    return found, max(difference(r) for r in rounds.values())


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, quick="a tiny random model, one round")
    parser.add_argument("--model", help="a saved reward model; else the base's lower layers with a new head")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--groups", type=int, default=64, help="a round")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--dimensions", type=int, default=3, choices=range(1, len(REWARDED) + 1))
    parser.add_argument("--turns", type=int, default=8, help="of a context, on average")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=300, help="a round takes no new group after this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.limit_s = 1, 10.0
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    found, worst = measure(args)
    print(f"{args.concurrency} requests at once, {args.responses} responses x {args.dimensions} dimensions each")
    for row in found:
        print(f"{row['name']:<56} {row['value']:9.3f}  [{row['low']:.3f}, {row['high']:.3f}]  n = {row['n']}")
    print(f"largest difference of a reward between service and process: {worst:.2e} (permitted: {TOLERANCE:g})")
    if args.json:
        records.write_json(args.json, found)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        sys.exit(f"scorer_load: {e}")
