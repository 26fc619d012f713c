"""Judges' replies, mutated: what is read of them that they do not say, and what they say that is not read.

    python -m tests.benchmarks.judge_replies --json figures.json      # 10,000 replies, seconds
    python -m tests.benchmarks.judge_replies --quick                  # 1,000

Replies are mutated from valid ones in 17 ways (tests/judge_replies.py, whose oracle reads by a grammar of its own).
Beside the reader of stage tournament stand two that are less strict, so that the count is seen to find them out. Shares
of all replies, with exact 95 % bounds: invented (verdicts that the text does not hold), overlooked (verdicts that it
holds and the reader did not find), and read.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence

from psychepass.stats import exact_binomial
from tests.benchmarks.figures import Figure, benchmark_parser
from tests.judge_replies import KEYS, holds, mutated
from tournament.judge_reply import NoVerdict, read_reply

REPLIES = 10_000
Read = dict[str, tuple[str, str]] | None


def strict(text: str) -> Read:
    try:
        return {key: (v.winner, v.reason) for key, v in read_reply(text).items()}
    except NoVerdict:
        return None


def careless(text: str) -> Read:
    """A control that fails: the plain JSON reader, which takes the last of two values of one key."""
    try:
        found = json.loads(text)
        read = {key: (found[key]["winner"], found[key]["reason"].strip()) for key in KEYS}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return read if all(w in ("A", "B", "tie") and r for w, r in read.values()) and len(found) == len(KEYS) else None


def lenient(text: str) -> Read:
    """A control that fails: takes the first thing in braces, any spelling, and a tie for what is missing."""
    try:
        found = json.loads(re.search(r"\{.*\}", text, re.DOTALL)[0])  # type: ignore[index]
        low = {str(k).strip().lower(): v for k, v in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    read = {}
    for key in KEYS:
        value = low.get(key, {})
        winner = str(value.get("winner", "") if isinstance(value, dict) else value).strip().upper()
        read[key] = ({"A": "A", "B": "B"}.get(winner[:1], "tie"), str(value))
    return read


def wrong(read: Callable[[str], Read], replies: int = REPLIES) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By kind of mutation: verdicts that the text does not hold, verdicts overlooked, and verdicts read."""
    invented, overlooked, accepted = Counter[str](), Counter[str](), Counter[str]()
    for kind, text in mutated(replies, seed=4):
        said, found = holds(text), read(text)
        winners = found and {k: w for k, (w, _) in found.items()}
        if found is not None:
            accepted[kind] += 1
            invented[kind] += said is None or winners != {k: w for k, (w, _) in said.items()}
        overlooked[kind] += said is not None and found != said
    return +invented, +overlooked, accepted


READERS: dict[str, Callable[[str], Read]] = {"strict": strict, "plain JSON": careless, "lenient": lenient}


def measure(replies: int) -> list[Figure]:
    figures = []
    for name, reader in READERS.items():
        for what, by_kind in zip(("invented", "overlooked", "read"), wrong(reader, replies), strict=True):
            ends = exact_binomial(by_kind.total(), replies)
            figures.append(Figure(f"{name} reader/{what}", ends.value, ends.low, ends.high, ends.n))
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    args = benchmark_parser(__doc__, quick="1,000 replies").parse_args(argv)
    figures = measure(1_000 if args.quick else REPLIES)
    for f in figures:
        print(f"{f.name:32} {f.value:.4f} [{f.low:.4f}, {f.high:.4f}] n = {f.n}")
    if args.json:
        args.json.write_text(json.dumps([f._asdict() for f in figures], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
