"""What the benchmarks share: a figure, one line of their JSON, and the options of each."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

QUANTILES = (0.1, 0.9)


class Figure(NamedTuple):
    """A value with the ends of its interval, over n units; the benchmark says what they are. `low` and `high` equal the
    value where there is none."""

    name: str
    value: float
    low: float
    high: float
    n: int


def figure(name: str, values: float | Iterable[float]) -> Figure:
    """The median with its 10 % and 90 % quantiles over n rounds, or a number alone (n = 1)."""
    found = np.atleast_1d(np.asarray(values if isinstance(values, float | int) else list(values), dtype=float))
    low, high = np.quantile(found, QUANTILES)
    return Figure(name, float(np.median(found)), float(low), float(high), len(found))


def benchmark_parser(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """The command line of a benchmark: --quick, which `quick` describes, and --json."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures as a flat list")
    return parser
