"""A reward model on human feedback: counsellors' rewritten replies against the helpers' own (feedback_esconv).

    python -m tests.benchmarks.feedback_esconv --json esconv.json     # SmolLM2's lower layers, as the quickstart
    python -m tests.benchmarks.feedback_esconv --quick                # 12 dialogues, a tiny random model: no result

Reads $PSYCHEPASS_SHARED/data/feedback_esconv; where it is absent, says so and exits 0. Everything made of its rows
lies in a folder outside the project and goes with the end of the script (--work keeps it, and goes on from it).

A pair: the dialogue so far, the rewritten reply (chosen), the helper's (rejected), and one area that the reply was
bad in. The split is by dialogue, in --folds folds: each dialogue is tested once, by a model that never saw it.
Printed by area and together, with intervals over dialogues: accuracy; the longer reply (words, characters); the
same model asked about another area; all of them on pairs of about the same length. The chosen reply is always the
rewritten one and the area follows the pair, so beating the longer reply does not prove a sense of areas: that is
what the shuffled control is beside it for.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psychepass import records
from psychepass.cli import main as cli
from psychepass.errors import UserError
from psychepass.schema import Dimension, PreferencePair, Session, content_hash
from psychepass.stats import jackknife_t, share_interval
from reward_model.accuracy import Margin, accuracy, correct, longer_margin, reward_margin, row_of
from reward_model.data import Ask
from reward_model.evaluate import score_asks
from reward_model.inputs import sessions_of
from tests.benchmarks.figures import benchmark_parser
from training.feedback_esconv import AREAS, conversational
from training.imported import PairRow, checked_rows, records_of

ROOT = Path(__file__).resolve().parents[2]
NAME = "feedback_esconv"
FILE = "feedback_ablation_data_train.json"
SAME_LENGTH = 0.15  # pairs whose word counts differ by at most this share of the longer reply


def shuffled(dimension: Dimension) -> Dimension:
    """Another of the eight areas: three places on."""
    used = list(AREAS.values())
    return used[(used.index(dimension) + 3) % len(used)]


def margins(
    work: Path, rows: Sequence[PairRow], tests: set[str], args: argparse.Namespace
) -> tuple[list[PreferencePair], dict[str, Session], dict[tuple[str, Ask], float]]:
    """Train on the other dialogues by stage rm; the test pairs, their sessions and rewards (own and shuffled area)."""
    pairs, sessions = records_of(rows, NAME, tests)
    if not (work / "pairs.jsonl").is_file():
        records.write(work / "sessions.jsonl", sessions)
        records.write(work / "pairs.jsonl", pairs)
    changes = {"run": work, "seed": args.seed, "epochs": args.epochs, "clients_per_step": args.dialogues_per_step}
    changes["validation_clients"] = args.validation_dialogues
    changes |= {"learning_rate": args.learning_rate, "head_learning_rate": 3 * args.learning_rate, "max_length": 2048}
    if args.quick:
        from tests.tiny import tiny_model

        changes |= {"base": tiny_model(work), "layers": 2, "train_layers": 2}
    config = str(ROOT / "configs" / "quickstart" / "rm.yaml")
    if cli(["rm", config, *(f"{k}={v}" for k, v in changes.items())]) != 0:
        raise UserError(f"stage rm failed in {work}")
    test = [p for p in pairs if p.split == "test"]
    of_test = sessions_of(test, work / "sessions.jsonl")
    asks: dict[str, dict[Ask, None]] = {}
    for pair in test:
        for side in (pair.chosen, pair.rejected):
            wanted = (Ask(t, d) for t in side.turns for d in (pair.dimension, shuffled(pair.dimension)))
            asks.setdefault(side.session, {}).update(dict.fromkeys(wanted))
    rewards, _ = score_asks(work / "reward_model", [asks], of_test)
    return test, of_test, rewards


def characters_margin(sessions: dict[str, Session]) -> Margin:
    def characters(session: str) -> int:
        return len(sessions[session].turns[-1].therapist)

    return lambda pair: characters(pair.chosen.session) - characters(pair.rejected.session)


def same_length(sessions: dict[str, Session]) -> Callable[[PreferencePair], bool]:
    """Whether both replies are about as long, in words and in characters."""

    def close(pair: PreferencePair) -> bool:
        a, b = (sessions[side.session].turns[-1].therapist for side in (pair.chosen, pair.rejected))
        lengths = ((len(a.split()), len(b.split())), (len(a), len(b)))
        return all(abs(x - y) <= SAME_LENGTH * max(x, y) for x, y in lengths)

    return close


def paired(pairs: list[PreferencePair], margin: Margin, other: Margin) -> dict[str, Any]:
    """Accuracy less another one's on the same pairs, each dialogue weighing the same."""
    by_dialogue: dict[str, list[float]] = {}
    for pair in pairs:
        by_dialogue.setdefault(pair.profile_id, []).append(correct(margin(pair)) - correct(other(pair)))
    means = np.array([np.mean(v) for v in by_dialogue.values()])
    rest = (means.sum() - means) / max(1, len(means) - 1)
    return row_of(jackknife_t(rest, float(means.mean())), len(pairs))


def pairs_alike(pairs: list[PreferencePair], margin: Margin) -> dict[str, Any]:
    """Accuracy where every pair weighs the same, as the figures of others are counted; interval over dialogues."""
    by_dialogue: dict[str, list[float]] = {}
    for pair in pairs:
        by_dialogue.setdefault(pair.profile_id, []).append(correct(margin(pair)))
    shares, weights = ([f(v) for v in by_dialogue.values()] for f in (np.mean, len))
    return row_of(share_interval(shares, weights), len(pairs))


def figures(
    pairs: list[PreferencePair], sessions: dict[str, Session], rewards: dict[tuple[str, Ask], float]
) -> list[dict[str, Any]]:
    """{"name", "value", "low", "high", "n", "n_clients"}; n counts pairs, n_clients dialogues."""
    measures: dict[str, Margin] = {
        "accuracy": reward_margin(rewards),
        "shuffled areas": reward_margin(rewards, question=shuffled),
        "longer in words": longer_margin(sessions),
        "longer in characters": characters_margin(sessions),
    }
    close = same_length(sessions)
    groups = {"all": pairs, "same length": [p for p in pairs if close(p)]}
    groups |= {area: [p for p in pairs if p.dimension is d] for area, d in AREAS.items()}
    found = []
    for group, members in groups.items():
        for measure, margin in measures.items():
            row = accuracy(members, margin)
            if row is not None:
                found.append({"name": f"{group}: {measure}"} | row)
    for group in [g for g in ("all", "same length") if groups[g]]:
        for control in list(measures)[1:]:
            row = paired(groups[group], measures["accuracy"], measures[control])
            found.append({"name": f"{group}: accuracy - {control}"} | row)
    found += [{"name": f"all, pairs alike: {m}"} | pairs_alike(pairs, margin) for m, margin in measures.items()]
    return found


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, quick="12 dialogues, a tiny random model, under a minute")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only-folds", type=int, nargs="+", help="train and test these alone, from 0")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--validation-dialogues", type=int, default=12, help="of the train ones, to choose the epoch")
    parser.add_argument("--dialogues-per-step", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder outside the project, kept; else a temporary one")
    args = parser.parse_args(argv)
    if args.quick:
        args.folds, args.epochs, args.validation_dialogues = 2, 1, 1
    if args.work and args.work.resolve().is_relative_to(ROOT):
        parser.error(f"--work {args.work} lies in the project; no row of the data may")
    return args


def run(rows: list[PairRow], folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All folds' test pairs together; a pair's margin is its own fold's model's."""
    dialogues = sorted({r.client for r in rows}, key=content_hash)
    if args.quick:
        dialogues = dialogues[:12]
        rows = [r for r in rows if r.client in dialogues]
    tested: list[PreferencePair] = []
    sessions: dict[str, Session] = {}
    rewards: dict[tuple[str, Ask], float] = {}
    for fold in args.only_folds or range(args.folds):
        of_fold = margins(folder / f"fold-{fold}", rows, set(dialogues[fold :: args.folds]), args)
        tested += of_fold[0]
        sessions |= of_fold[1]
        rewards |= of_fold[2]
    return figures(tested, sessions, rewards)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    file = Path(os.environ.get("PSYCHEPASS_SHARED", ROOT.parent / "shared")) / "data" / NAME / FILE
    if not file.is_file():
        print(f"{file} is absent: set PSYCHEPASS_SHARED to the folder with data/; nothing measured")
        return 0
    rows = checked_rows(conversational(records.read_json(file), NAME), NAME, Dimension.EMPATHY.value)
    with tempfile.TemporaryDirectory() as temporary:
        found = run(rows, args.work or Path(temporary), args)
    print(f"{len(rows)} pairs of {len({r.client for r in rows})} dialogues; {args.folds} folds, seed {args.seed}")
    if args.only_folds:
        print(f"tested: the dialogues of folds {', '.join(map(str, args.only_folds))}")
    if args.quick:
        print("--quick: a tiny random model on 12 dialogues; these numbers mean nothing")
    for row in found:
        ends = "[{}, {}]".format(*("no bound" if row[k] is None else f"{row[k]:.3f}" for k in ("low", "high")))
        print(f"{row['name']:<44} {row['value']:6.3f} {ends}  n = {row['n']} pairs, {row['n_clients']} dialogues")
    if args.json:
        records.write_json(args.json, found)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        sys.exit(f"feedback_esconv: {e}")
