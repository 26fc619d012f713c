"""What de-identification finds on sentences of our own, and what the imported character sets yield as seeds.

    python -m tests.benchmarks.profiles --json profiles.json
    python -m tests.benchmarks.profiles --quick                # a third of the sentences, the small sets alone
    python -m tests.benchmarks.profiles --spacy-en PIPELINE    # with an installed pipeline beside our recognizers

The sentences: tests/benchmarks/identifiers.py, shares with 95 % intervals over n templates. The sets: rows, refusals,
near-duplicates and identifiers, from $PSYCHEPASS_SHARED/data; one that is absent is said to be and left out. Counts
only: no text of a row is printed or written; a count stands for itself, and n is the rows of its set.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from psychepass.config import parse
from rollout_env.deidentify import DeIdentifier
from rollout_env.profile_seeds import make_seeds
from rollout_env.profile_selection import near_duplicates
from rollout_env.profile_sources import SourceEntry
from tests.benchmarks import identifiers
from tests.benchmarks.figures import benchmark_parser
from tests.benchmarks.identifiers import LANGUAGES

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
    parser = benchmark_parser(__doc__, quick="less of everything, under a minute")
    parser.add_argument("--spacy-en", default="", help="name of an installed English spaCy pipeline")
    parser.add_argument("--spacy-zh", default="", help="name of an installed Chinese spaCy pipeline")
    args = parser.parse_args()
    tool = DeIdentifier({"en": args.spacy_en, "zh": args.spacy_zh})
    found_names = [f for language in LANGUAGES for f in identifiers.measure(tool, language, quick=args.quick)]
    for f in found_names:
        print(f"{f.name}: {f.value:.3f} [{f.low:.3f}, {f.high:.3f}], n {f.n}")
    figures: list[dict[str, Any]] = [f._asdict() for f in found_names]
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
