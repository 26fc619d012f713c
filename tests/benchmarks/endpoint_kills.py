"""SIGKILL at random moments of stage `simulate` or `tournament` over endpoints: what is lost, what is asked again.

    python -m tests.benchmarks.endpoint_kills                       # 20 kills of simulate
    python -m tests.benchmarks.endpoint_kills --client              # the same where a model plays the clients too
    python -m tests.benchmarks.endpoint_kills --stage tournament    # 20 kills of a panel of two LLM judges
    python -m tests.benchmarks.endpoint_kills --quick --json kills.json

A server in this process answers by a hash of the messages, with some 429s, 500s and replies that stay unreadable. One
run is left alone; the other is killed, called again, killed again, and ended. Exits 1 where a record is missing or too
many, or where more calls were repeated than were in flight at the kills: the client had not written them down, i.e.
there was no line of them in the ledger or, of an answer, no record. In `simulate` an unreadable first answer is in the
ledger only, and after a kill between it and the second both are asked again; both count.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from psychepass import records
from tests.benchmarks.figures import benchmark_parser
from tests.endpoint_rig import Kills, contestants, kill_often, write_config
from tests.fault_server import ALWAYS, Fault, FaultServer, served
from tests.judge_rig import judges, write_run
from tests.played_client import client, speak

FAULTS = (Fault("429", 0.02), Fault("500", 0.02), Fault("empty", 0.003, ALWAYS), Fault("wrong role", 0.003, ALWAYS))

JUDGE_FAULTS = (
    *(Fault("429", 0.02), Fault("500", 0.02), Fault("empty", 0.05, ALWAYS), Fault("wrong role", 0.02, ALWAYS)),
    Fault("cut-off text", 0.15, ALWAYS),
)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, quick="4 kills of a shorter run, under a minute")
    parser.add_argument("--stage", choices=("simulate", "tournament"), default="simulate")
    parser.add_argument("--client", action="store_true", help="in simulate: a model plays the clients")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=24, choices=range(1, 25), metavar="1..24")
    parser.add_argument("--contestants", type=int, default=6)
    parser.add_argument("--concurrent", type=int, default=24, help="calls at once, of each model")
    parser.add_argument("--delay-s", type=float, default=0.15, help="of an answer, on average")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.quick:
        args.kills, args.clients, args.contestants = 4, 16, 2
    return args


def configs(args: argparse.Namespace, folder: Path, url: str) -> list[Path]:
    """The same run twice, in two folders."""
    folders = [folder / "plain", folder / "killed"]
    if args.stage == "simulate":
        therapists = contestants(url, args.contestants, max_concurrent=args.concurrent)
        change = {"client": client(url, max_concurrent=args.concurrent)} if args.client else {}
        return [write_config(f, therapists, args.clients, **change) for f in folders]
    entries = judges(url, 2, max_concurrent=args.concurrent)
    return [write_run(f, entries, args.clients, args.contestants) for f in folders]


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    faults = FAULTS if args.stage == "simulate" else JUDGE_FAULTS
    server = FaultServer(faults, args.delay_s, say=speak if args.client else None)
    with tempfile.TemporaryDirectory() as name, served(server) as url:
        plain, killed = configs(args, Path(name), url)
        found = kill_often(server, url, plain, killed, args.kills, random.Random(args.seed))
    rows: list[dict[str, Any]] = [
        {"name": f"endpoint kills, {args.stage}: {k.replace('_', ' ')}", "value": v, "low": v, "high": v}
        for k, v in found._asdict().items()
    ]
    for row in rows:
        row["n"] = found.kills
        print(f"{row['name']:<52} {row['value']:6d}")
    print(f"kills: {found.kills} of {args.kills} asked for; up to {args.concurrent} calls at once of each model")
    if args.json:
        records.write_json(args.json, rows)
    return 1 if lost(found) or found.kills < args.kills else 0


def lost(found: Kills) -> bool:
    """Whether a record is missing or too many, or more calls were repeated than were in flight."""
    return bool(found.missing or found.extra or found.repeated > found.unwritten)


if __name__ == "__main__":
    sys.exit(main())
