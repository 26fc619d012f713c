"""What the imported character sets yield as seeds of client profiles: rows, refusals, near-duplicates, identifiers.

    python -m tests.benchmarks.profiles --json profiles.json
    python -m tests.benchmarks.profiles --quick                # the small sets alone

Reads $PSYCHEPASS_SHARED/data; a set that is absent is said to be and left out. Counts only: no text of a row is
printed or written. Figures: name, value, low, high, n (a count stands for itself; n is the rows of its set).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path

from psychepass.config import parse
from rollout_env.deidentify import DeIdentifier
from rollout_env.profile_seeds import make_seeds
from rollout_env.profile_selection import near_duplicates
from rollout_env.profile_sources import SourceEntry

SHARED = Path(os.environ.get("PSYCHEPASS_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
SETS = {
    "patienthub": "patienthub",
    "vera_mh": "vera_mh/personas.tsv",
    "psychagent": "psychagent_profiles/cbt_profiles.jsonl",
    "cactus": "cactus_clients/evaluation.json",
}
QUICK = ("patienthub", "vera_mh")
THRESHOLD = 0.5


def measure(kind: str, path: Path, tool: DeIdentifier) -> dict[str, float]:
    """Counts of one set, and the seconds that reading and de-identification took."""
    entry = parse(SourceEntry, {"kind": kind, "path": str(path), "licence": "see the set"}, kind)
    begun = time.perf_counter()
    seeds, refused = make_seeds([entry], None, False, 0, tool)
    seconds = time.perf_counter() - begun
    found = {"rows": len(seeds) + len(refused), "seeds": len(seeds)}
    found |= {f"refused: {reason}": n for reason, n in Counter(f.reason for f in refused).items()}
    twice = near_duplicates({s.id: s.text for s in seeds}, THRESHOLD, "seeds")
    found |= {"near-duplicates": len(twice), "kept": len(seeds) - len(twice)}
    replaced = sum((Counter(s.replaced) for s in seeds), Counter())
    found |= {f"identifiers: {k.lower()}": n for k, n in sorted(replaced.items())}
    found["seeds with an identifier"] = sum(bool(s.replaced) for s in seeds)
    return {**found, "seconds": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tool, figures = DeIdentifier(), []
    for kind in QUICK if args.quick else SETS:
        path = SHARED / "data" / SETS[kind]
        if not path.exists():
            print(f"{kind}: {path} is absent; not measured")
            continue
        found = measure(kind, path, tool)
        print(f"{kind}: " + ", ".join(f"{name} {value:g}" for name, value in found.items()))
        figures += [
            {"name": f"{kind}: {name}", "value": v, "low": v, "high": v, "n": found["rows"]}
            for name, v in found.items()
        ]
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
