"""SIGKILL at random moments of stage `simulate` over an endpoint: what is lost, what is asked again.

    python -m tests.benchmarks.endpoint_kills                       # 20 kills
    python -m tests.benchmarks.endpoint_kills --client              # the same where a model plays the clients too
    python -m tests.benchmarks.endpoint_kills --quick --json kills.json

A server in this process answers by a hash of the messages, with some 429s, 500s and replies that stay unreadable. One
run is left alone; the other is killed, called again, killed again, and ended. Exits 1 where a record is missing or too
many, or where more calls were repeated than were in flight at the kills (a conversation's last call, unanswered or
answered less than a quarter of a second before: the client may not have read it). An unreadable first answer is not
written; after a kill between it and the second, both are asked again.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from psychepass import records
from tests.endpoint_rig import contestants, kill_often, write_config
from tests.fault_server import ALWAYS, Fault, FaultServer, served
from tests.played_client import client, speak

FAULTS = (Fault("429", 0.02), Fault("500", 0.02), Fault("empty", 0.003, ALWAYS), Fault("wrong role", 0.003, ALWAYS))


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", action="store_true", help="a model plays the clients")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=24, choices=range(1, 25), metavar="1..24")
    parser.add_argument("--contestants", type=int, default=6)
    parser.add_argument("--concurrent", type=int, default=24, help="conversations open at once")
    parser.add_argument("--delay-s", type=float, default=0.15, help="of an answer, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4 kills of a shorter run, under a minute")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.quick:
        args.kills, args.clients, args.contestants = 4, 16, 2
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    server = FaultServer(FAULTS, args.delay_s, speak=speak)
    with tempfile.TemporaryDirectory() as name, served(server) as url:
        therapists = contestants(url, args.contestants, max_concurrent=args.concurrent)
        change = {"client": client(url, max_concurrent=args.concurrent)} if args.client else {}
        plain, killed = (write_config(Path(name) / n, therapists, args.clients, **change) for n in ("plain", "killed"))
        found = kill_often(server, plain, killed, args.kills, random.Random(args.seed))
    rows: list[dict[str, Any]] = [
        {"name": f"endpoint kills: {k.replace('_', ' ')}", "value": v, "low": v, "high": v, "n": found.kills}
        for k, v in found._asdict().items()
    ]
    for row in rows:
        print(f"{row['name']:<45} {row['value']:6d}")
    print(f"kills: {found.kills} of {args.kills} asked for; {args.concurrent} conversations open at each")
    if args.json:
        records.write_json(args.json, rows)
    lost = found.missing or found.extra or found.repeated > found.in_flight_with_grace
    return 1 if lost or found.kills < args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
