"""CPU time a request at 1,000 open conversations: stage `simulate` beside a bare loop over the `openai` client.

    python -m tests.benchmarks.orchestration                        # 1,000 conversations of 12 turns, 3 rounds
    python -m tests.benchmarks.orchestration --quick --json orchestration.json

All hold the same conversations against the same server on the loopback, each in a process of its own, in turn, a round
each. Measured is the CPU time of that process (user and system) after its imports. `ours` is
rollout_env.session.simulate with plan, journal, ledger and records; `bare` keeps a list of messages a conversation and
calls `chat.completions.create`, writing nothing; `bare, aiohttp` is the same over the transport that ours uses. Exits 1
where ours takes more than twice the CPU time of bare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psychepass import records
from psychepass.config import load
from psychepass.schema import Sampling, Script
from psychepass.splits import Split, Splits
from rollout_env.profiles import load_profiles
from rollout_env.script import build_script
from rollout_env.session import simulate
from rollout_env.therapist import TherapistEntry, system_prompt
from tests.benchmarks.figures import benchmark_parser
from tests.endpoint_rig import ROOT, contestants
from tests.fault_server import MODEL

KINDS = ("ours", "bare", "bare, aiohttp")
CLIENTS = 20
SAMPLING = Sampling(temperature=0.8, max_tokens=64)


def clients() -> tuple[list[Script], dict[str, Split]]:
    profiles, split_of = load_profiles(), load(Splits, ROOT / "configs" / "splits.yaml").of()
    speaking = [p for p, split in split_of.items() if split != "heldout"][:CLIENTS]
    return [build_script(profiles[p], "short") for p in speaking], split_of


def ours(url: str, conversations: int, folder: Path) -> int:
    """Requests made."""
    scripts, split_of = clients()
    entry = TherapistEntry.model_validate(contestants(url, 1, max_concurrent=conversations, timeout_s=120.0)[0])
    seeds = range(conversations // len(scripts))
    sessions = simulate(scripts, [entry], seeds, split_of, folder=folder, target_words=30, sampling=SAMPLING)
    return sum(s.usage.calls for s in sessions)


def bare(url: str, conversations: int, http_client: Any) -> int:
    """Requests made."""
    from openai import AsyncOpenAI

    scripts, _ = clients()
    system = system_prompt("paper", 30)

    async def hold(client: AsyncOpenAI, script: Script, seed: int) -> int:
        messages: list[Any] = [{"role": "system", "content": system}]
        for turn in script.turns:
            messages.append({"role": "user", "content": turn.client.trigger})
            answer = await client.chat.completions.create(
                model=MODEL, messages=messages, temperature=0.8, top_p=1.0, max_tokens=64, seed=seed
            )
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        return len(script.turns)

    async def all_of_them() -> int:
        async with AsyncOpenAI(api_key="none", base_url=url, timeout=120.0, http_client=http_client) as client:
            seeds = range(conversations // len(scripts))
            return sum(await asyncio.gather(*(hold(client, s, seed) for s in scripts for seed in seeds)))

    return asyncio.run(all_of_them())


def worker(kind: str, url: str, conversations: int) -> dict[str, float]:
    """What this process took after its imports."""
    import httpx
    import openai

    import psychepass.llm  # noqa: F401  both sides import the same

    limits: Any = httpx.Limits(max_connections=conversations)
    http_client = openai.DefaultAioHttpClient(limits=limits) if kind == "bare, aiohttp" else None
    with tempfile.TemporaryDirectory() as folder:
        cpu_s, begun = time.process_time(), time.perf_counter()
        n = ours(url, conversations, Path(folder)) if kind == "ours" else bare(url, conversations, http_client)
        return {"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - begun, "requests": n}


def measure(conversations: int, rounds: int, delay_s: float) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    quiet = os.environ | {"TQDM_DISABLE": "1"}
    for _ in range(rounds):
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as name:
                port = Path(name) / "port"
                serve = [
                    sys.executable,
                    "-m",
                    "tests.fault_server",
                    "--port-file",
                    str(port),
                    "--delay-s",
                    str(delay_s),
                ]
                server = subprocess.Popen(serve, cwd=ROOT)
                try:
                    while not (port.is_file() and port.read_text()):
                        time.sleep(0.05)
                    url = f"http://127.0.0.1:{port.read_text()}/v1"
                    call = [sys.executable, "-m", "tests.benchmarks.orchestration", "--worker", kind, "--url", url]
                    call += ["--conversations", str(conversations)]
                    done = subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=quiet)
                finally:
                    server.terminate()
                    server.wait(timeout=30)
            found[kind].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{kind}: {found[kind][-1]}", flush=True)
    return found


def figures(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians over rounds with the least and the most; ratios are taken within a round."""
    rows = []

    def add(name: str, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        rows.append({"name": name, "value": float(np.median(values)), "low": low, "high": high, "n": len(values)})

    ms = {kind: [1000 * r["cpu_s"] / r["requests"] for r in of_kind] for kind, of_kind in found.items()}
    for kind, of_kind in found.items():
        add(f"{kind}: CPU ms a request", ms[kind])
        add(f"{kind}: requests a second", [r["requests"] / r["wall_s"] for r in of_kind])
    for kind in KINDS[1:]:
        add(f"ours / {kind}: CPU a request", [a / b for a, b in zip(ms["ours"], ms[kind], strict=True)])
    return rows


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, quick="100 conversations, one round, under a minute")
    parser.add_argument("--conversations", type=int, default=1000, help=f"a multiple of {CLIENTS}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-s", type=float, default=1.0, help="of an answer, on average")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.conversations, args.rounds, args.delay_s = 100, 1, 0.1
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if args.worker:
        print(json.dumps(worker(args.worker, args.url, args.conversations)))
        return 0
    rows = figures(measure(args.conversations, args.rounds, args.delay_s))
    print(f"{args.conversations} conversations open at once, answers after {args.delay_s:g} s on average")
    for row in rows:
        print(f"{row['name']:<40} {row['value']:9.3f}  [{row['low']:.3f}, {row['high']:.3f}]  n = {row['n']}")
    if args.json:
        records.write_json(args.json, rows)
    ratio = next(r for r in rows if r["name"] == "ours / bare: CPU a request")
    return 0 if ratio["value"] <= 2 else 1


if __name__ == "__main__":
    sys.exit(main())
