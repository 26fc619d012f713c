"""How a model keeps to the script as a client: the share of its lines with each violation, over real HTTP.

    python -m tests.benchmarks.client_adherence                      # SmolLM2 behind `transformers serve`, 6 sessions
    python -m tests.benchmarks.client_adherence --quick --json adherence.json
    python -m tests.benchmarks.client_adherence --url http://127.0.0.1:8000/v1 --model NAME --key-env KEY

Short sessions of different shipped train clients with a rule-based therapist, so that the client alone is a model.
Shares are of turns, once for the first draft and once for the line that stands after the retry; the interval is over
sessions, one a client (psychepass.stats.share_interval). With --folder the sessions of several calls count together:
`--folder kept --sessions 3`, then `--folder kept --sessions 3 --skip 3`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from psychepass import records
from psychepass.cli import main as cli
from psychepass.schema import ClientLine
from psychepass.stats import share_interval
from rollout_env.adherence import KINDS
from rollout_env.open_session import standing
from tests.benchmarks.figures import benchmark_parser
from tests.endpoint_rig import write_config
from tests.played_client import client
from tests.serve_rig import smollm2_served

THERAPIST = {"name": "reflector", "kind": "rules", "family": "reflector", "rules": "reflector"}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, quick="two sessions of the shortest lines")
    parser.add_argument("--sessions", type=int, default=6, choices=range(2, 11), metavar="2..10")
    parser.add_argument("--skip", type=int, default=0, help="clients, from the first")
    parser.add_argument("--folder", type=Path, help="is kept; the figures cover every call that used it")
    parser.add_argument("--max-tokens", type=int, default=48, help="of a line")
    parser.add_argument("--url", help="an endpoint of one's own; without it the bundled SmolLM2 is served here")
    parser.add_argument("--model", default="")
    parser.add_argument("--key-env")
    parser.add_argument("--mode", default="active", choices=("active", "passive"))
    args = parser.parse_args(argv)
    if args.quick:
        args.sessions, args.max_tokens = 2, 6
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        if args.url:
            hold(folder / str(args.skip), args, args.url, args.model)
        else:
            with smollm2_served(Path(name) / "log") as (url, model):
                hold(folder / str(args.skip), args, url, model)
        found = sorted(folder.glob("*/run/client_lines.jsonl"))
        lines = [line for path in found for line in records.read(path, ClientLine)]
    rows = figures(lines)
    for row in rows:
        print(f"{row['name']:<55} {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]  {row['n']} sessions")
    if args.json:
        records.write_json(args.json, rows)
    return 0


def hold(folder: Path, args: argparse.Namespace, url: str, model: str) -> None:
    """The stage, with the clients after those skipped."""
    played = client(url, model=model, unlisted=True, max_concurrent=2, timeout_s=300.0, key_env=args.key_env)
    played |= {"mode": args.mode, "sampling": {"temperature": 0.7, "max_tokens": args.max_tokens}}
    config = write_config(folder, [THERAPIST], args.skip + args.sessions, client=played)
    splits = yaml.safe_load((folder / "splits.yaml").read_text())
    splits["train"] = splits["train"][args.skip :]
    (folder / "splits.yaml").write_text(yaml.safe_dump(splits))
    if cli(["simulate", str(config)]):
        raise SystemExit("the stage did not end")


def figures(lines: Sequence[ClientLine]) -> list[dict[str, Any]]:
    """A row a kind and stage: the share of a session's turns, over sessions."""
    sessions: dict[str, dict[int, list[ClientLine]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        sessions[line.session_key][line.turn].append(line)
    rows = []
    for stage, pick in (("first draft", _first), ("line that stands", standing)):
        for kind in ("any violation", *KINDS):
            shares = [_share(turns, pick, kind) for turns in sessions.values()]
            found = share_interval(shares)
            ends = {"value": found.value, "low": found.low, "high": found.high, "n": len(shares)}
            rows.append({"name": f"LLM client, {stage}: {kind}", **ends})
    return rows


def _first(drafts: Sequence[ClientLine]) -> ClientLine:
    return drafts[0]


def _share(turns: Mapping[int, list[ClientLine]], pick: Any, kind: str) -> float:
    """Of one session's turns, those whose draft has the kind of violation; no readable draft has the last one's."""
    picked = [pick(drafts) or drafts[-1] for drafts in turns.values()]
    return sum(bool(p.violations) if kind == "any violation" else kind in p.violations for p in picked) / len(picked)


if __name__ == "__main__":
    sys.exit(main())
