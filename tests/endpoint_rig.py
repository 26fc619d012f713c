"""Stages over a made-up server, as tests and benchmarks of endpoints set them up, and kill them.

`simulate` is set up here, `tournament` with LLM judges in tests/judge_rig.py.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from psychepass import records
from psychepass.config import load
from psychepass.ledger import Call
from psychepass.schema import ClientLine, Failure, Record, Session, TurnRecord
from psychepass.splits import Splits
from tests import judge_rig
from tests.fault_server import MODEL, FaultServer, Served, digest, settle

ROOT = Path(__file__).resolve().parent.parent
ANSWERED = ("ok", "empty", "wrong role")  # outcomes of a call whose reply a judge keeps
FILES: dict[str, type[Record]] = {
    "sessions.jsonl": Session,
    "turns.jsonl": TurnRecord,
    "session_failures.jsonl": Failure,
    "client_lines.jsonl": ClientLine,
}


def contestants(url: str, n: int = 3, **change: Any) -> list[dict[str, Any]]:
    """Entries of one endpoint that differ in prompt, temperature and seed."""
    endpoint = {"base_url": url, "model": MODEL, "price": {"input": 1.0, "output": 2.0}, "timeout_s": 60.0} | change
    return [
        {
            "name": f"made-up-{i}",
            "kind": "endpoint",
            "family": "made-up",
            "endpoint": endpoint,
            "prompt": ("paper", "warm")[i % 2],
            "seed": i,
            "sampling": {"temperature": 0.5 + i / 10, "max_tokens": 64},
        }
        for i in range(n)
    ]


def write_config(folder: Path, therapists: list[dict[str, Any]], clients: int, **change: Any) -> Path:
    """A config of the stage in `folder`; `clients` of the shipped train and test clients meet all therapists."""
    shipped = load(Splits, ROOT / "configs" / "splits.yaml")
    held = {"train": list(shipped.train), "test": list(shipped.test), "dev": list(shipped.dev)}
    left = clients
    for name, of_set in held.items():
        held[name], left = of_set[:left], max(0, left - len(of_set))
    folder.mkdir(parents=True, exist_ok=True)
    splits = folder / "splits.yaml"
    splits.write_text(yaml.safe_dump({**held, "heldout": list(shipped.heldout)}))
    names = [t["name"] for t in therapists]
    config = {
        "run": str(folder / "run"),
        "splits": str(splits),
        "form": "short",
        "target_words": 30,
        "sampling": {"temperature": 0.8, "max_tokens": 64},
        "therapists": therapists,
        "meets": dict.fromkeys(("train", "test", "dev"), names),
        "seeds": [0],
        "cache_gib": 0.5,
    }
    path = folder / "simulate.yaml"
    path.write_text(yaml.safe_dump(config | change))
    return path


FILES_OF = {"simulate": FILES, "tournament": judge_rig.FILES}


def command(config: Path) -> list[str]:
    """The call of the stage that the config file is named after."""
    return [sys.executable, "-m", "psychepass.cli", config.stem, str(config)]


def said(run: Path, stage: str = "simulate") -> dict[str, set[str]]:
    """The ids of each file's records, none where there is no file; an id leaves usage and time out."""
    found = {name: (run / name, model) for name, model in FILES_OF[stage].items()}
    return {n: {r.id for r in records.read(p, model)} if p.exists() else set() for n, (p, model) in found.items()}


class Kills(NamedTuple):
    """`calls` of an undisturbed run. Of the killed one: calls beyond those (`repeated`), calls in flight at the kills
    (unanswered; and `unwritten`: without a line of the ledger, or answered and without a record of the answer), records
    missing and too many."""

    calls: int
    kills: int
    repeated: int
    in_flight: int
    unwritten: int
    missing: int
    extra: int


def told_apart_by_time_alone(by_server: Counter[str], calls: Sequence[Call], timeout_s: float) -> bool:
    """Whether the ledger's calls end as the server counted, but for those that the caller gave up, after `timeout_s`,
    before the answer came or, on a machine that stood still, before the request was sent."""
    by_ledger = Counter(c.outcome for c in calls)
    late, given_up = by_server - by_ledger, by_ledger - by_server
    waited_s = min((c.seconds for c in calls if c.outcome == "time-out"), default=timeout_s)
    return set(given_up) <= {"time-out"} and given_up.total() >= late.total() and waited_s >= timeout_s - 0.001


def asked(server: FaultServer) -> Counter[str]:
    """How often each prompt was sent. Who sends it first gets its 500, so seeds and sampling are not told apart."""
    return Counter(digest(b["messages"]) for b in server.bodies)


def forget(server: FaultServer) -> None:
    server.log, server.bodies, server.seen = [], [], Counter()


def kill_often(server: FaultServer, url: str, plain: Path, killed: Path, kills: int, rng: random.Random) -> Kills:
    """Run `plain` undisturbed, then `killed` (the same, in another folder) with SIGKILLs at random moments.

    A moment is a number of requests after the process began to ask, and up to 0.2 s more. The last calls get no answer
    before it, so that on a busy machine too the process has not ended.
    """
    subprocess.run(command(plain), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    undisturbed, calls = asked(server), len(server.log)
    forget(server)
    stage, run = killed.stem, killed.parent / "run"
    in_flight = unwritten = done = 0
    while done < kills:
        before, since, left = len(server.log), mark(run, stage), max(1, calls - len(server.log))
        wanted = before + rng.randint(1, max(1, int(1.8 * left / (kills - done + 1))))
        server.hold_from = before + left - 1
        process = subprocess.Popen(command(killed), cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(server.log) < wanted:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        at = time.monotonic()
        if process.wait() == 0:
            break  # ended before the kill
        done += 1
        server.hold_from = None
        settle(url)
        while server.open:  # a call of the dead is over before the next run asks
            time.sleep(0.01)
        in_flight += len(_open_at(server.log[before:], at))
        unwritten += len(server.log) - before - written(run, stage, since)
    server.hold_from = None
    subprocess.run(command(killed), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    repeated = (asked(server) - undisturbed).total()
    left, right = (said(config.parent / "run", stage) for config in (plain, killed))
    return Kills(
        *(calls, done, repeated, in_flight, unwritten),
        missing=sum(len(left[n] - right[n]) for n in left),
        extra=sum(len(right[n] - left[n]) for n in left),
    )


class Mark(NamedTuple):
    """Whole rows, so far, of the ledger and of the file that has a record for each answer of a judge or a client."""

    calls: int
    replies: int


def mark(run: Path, stage: str) -> Mark:
    return Mark(*(len(_whole_rows(path)) for path in _journals(run, stage)))


def written(run: Path, stage: str, since: Mark) -> int:
    """Calls after `since` that no later run repeats: without an answer and in the ledger, or with a record of theirs.

    An unreadable first answer to a therapist's prompt gets its record with the second: until then both are repeated.
    Earlier calls are left out, because an answer that a kill took the record of has one once it is asked for again.
    """
    ledger, replies = _journals(run, stage)
    calls = _whole_rows(ledger)[since.calls :]
    answered = [c["about"] for c in calls if c["outcome"] in ANSWERED]
    kept = len(calls) - len(answered) + len(_whole_rows(replies)) - since.replies
    if stage == "tournament":
        return kept
    turns = {(t["session_key"], str(t["turn"]["turn"])) for t in _whole_rows(run / "turns.jsonl")}
    failed = {f["subject"] for f in _whole_rows(run / "session_failures.jsonl")}
    asked_about = [about.split() for about in answered if not about.endswith(" client")]  # session KEY turn NUMBER
    return kept + sum((key, turn) in turns or key in failed for _, key, _, turn in asked_about)


def _journals(run: Path, stage: str) -> tuple[Path, Path]:
    replies = "judge_replies.jsonl" if stage == "tournament" else "client_lines.jsonl"
    return run / f"ledger_{stage}.jsonl", run / replies


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def _open_at(log: Sequence[Served], at: float) -> list[Served]:
    """Of each conversation the last call, if it was not answered by `at`: a later one shows that it was read."""
    last = {s.conversation: s for s in log}
    return [s for s in last.values() if s.sent_s is None or s.sent_s > at]
