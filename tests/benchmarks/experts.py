"""The reference judge beside human experts, outside the sessions that it was made for.

    python -m tests.benchmarks.experts --json experts.json
    python -m tests.benchmarks.experts --quick             # half of the conversations, a fifth of the dialogues

Reads $PSYCHEPASS_SHARED/data/empathic_judging and feedback_esconv; where they are absent, says so and exits 0. Nothing
is written but the figures. Which features of the judge can be computed there, and which cannot: unscripted.py. The
mapping below was fixed before any figure was seen; nothing was tuned on these sets.

empathic_judging: 4 x 50 conversations on 21 dimensions by 3 experts, a crowd and 3 LLMs. The experts' absolute scores:
ordinal alpha. Within-rater order: of the pairs of conversations that an expert tells apart, the share that the other
rater orders alike, a tie being half (0.5 is chance, and what a feature that never fires gets; how often it is above 0
stands beside it); mean over the experts as reference. Of the experts themselves it is the ceiling: mean over the
ordered pairs of experts.
  lend_an_ear           validating_emotions: validation; encouraging_elaboration: Engagement; demonstrating_
                        understanding: Empathy; advice_giving (how much): action; dismissing_emotions: dismissal;
                        self_oriented: none
  empatheticdialogues   empathy: Empathy; relevance, fluency: none
  epitome               level_emotional_reactions: warmth; level_interpretations: reflection; level_explorations: open
                        question
  perceived_empathy     none: the set has no text of these conversations
Intervals: delete-one-conversation jackknife with t; of means over dimensions, conversations within their set.

feedback_esconv: the reply that a counsellor rewrote against the helper's own, on the area that the own one was bad in;
share of pairs in which the feature is higher for the rewritten one, a tie being half. One annotation a reply, so there
is NO human ceiling. `overall` is the sign of the summed verdicts on Empathy, Engagement, Suggestion and validation
(ties within the judge's least margin); Self-disclosure, Professionalism and Structure have no feature of their own.
Intervals over dialogues. The longer reply stands beside both sets.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from psychepass import records
from psychepass.errors import UserError
from psychepass.stats import jackknife_t, share_interval
from tests.benchmarks.experts_feedback import LEXICONS, feedback, pairs_of
from tests.benchmarks.figures import Figure, benchmark_parser
from tests.benchmarks.unscripted import Line, conversation, lines_of
from tournament.lexicon import load_lexicon
from tournament.rater_agreement import alpha, cohen_kappa
from tournament.reference_judge import rubric_version

ROOT = Path(__file__).resolve().parents[2]
EXPERTS = ("expert1", "expert2", "expert3")
OTHERS = ("crowd", "gpt", "claude", "gemini")
DIMENSIONS = {
    "lend_an_ear": ("validating_emotions", "encouraging_elaboration", "demonstrating_understanding", "advice_giving",
                    "self_oriented", "dismissing_emotions"),
    "perceived_empathy": ("m_understood", "m_validated", "m_affirmed", "m_seen", "m_accepted", "m_caredfor",
                          "m_emotional", "m_practical", "m_motivation"),
    "empatheticdialogues": ("empathy", "relevance", "fluency"),
    "epitome": ("level_emotional_reactions", "level_interpretations", "level_explorations"),
}  # fmt: skip
IDS = {"lend_an_ear": "conversation_id", "perceived_empathy": "id", "empatheticdialogues": "conv_id",
       "epitome": "sp_id"}  # fmt: skip
TEXTS = {"lend_an_ear": "lend_an_ear_conversations.csv", "empatheticdialogues": "sample_empatheticdialogues.csv",
         "epitome": "sample_epitome.csv"}  # fmt: skip
FEATURE_OF = {
    ("lend_an_ear", "validating_emotions"): "validation",
    ("lend_an_ear", "encouraging_elaboration"): "Engagement",
    ("lend_an_ear", "demonstrating_understanding"): "Empathy",
    ("lend_an_ear", "advice_giving"): "action",
    ("lend_an_ear", "dismissing_emotions"): "dismissal",
    ("empatheticdialogues", "empathy"): "Empathy",
    ("epitome", "level_emotional_reactions"): "warmth",
    ("epitome", "level_interpretations"): "reflection",
    ("epitome", "level_explorations"): "open question",
}


class Estimate(NamedTuple):
    """A figure of I conversations, and the same with each of them left out."""

    value: float
    rest_I: np.ndarray


# --- empathic_judging ----------------------------------------------------------------------------


def order(reference_I: np.ndarray, other_I: np.ndarray) -> Estimate:
    """Of the pairs that `reference` tells apart, the share that `other` orders alike; a tie of `other` is half.

    Raises:
        UserError: the reference tells no two conversations apart, or none but those with one of them.
    """
    sign_II = np.sign(np.subtract.outer(reference_I, reference_I))
    told_II = np.abs(sign_II)
    alike_II = told_II * (1 + sign_II * np.sign(np.subtract.outer(other_I, other_I))) / 2
    told, alike = told_II.sum() / 2, alike_II.sum() / 2
    if (told - told_II.sum(axis=1)).min() <= 0:
        raise UserError("scores that hardly differ between conversations: an order needs two pairs that are told apart")
    return Estimate(float(alike / told), (alike - alike_II.sum(axis=1)) / (told - told_II.sum(axis=1)))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Of estimates over the same conversations."""
    return Estimate(float(np.mean([e.value for e in estimates])), np.mean([e.rest_I for e in estimates], axis=0))


def ceiling(scores: Mapping[str, np.ndarray]) -> Estimate:
    return mean_of([order(scores[a], scores[b]) for a, b in permutations(EXPERTS, 2)])


def beside_experts(scores: Mapping[str, np.ndarray], other_I: np.ndarray) -> Estimate:
    return mean_of([order(scores[e], other_I) for e in EXPERTS])


def figure(name: str, estimate: Estimate) -> Figure:
    """Without an interval (both ends the value) where the other rater, a feature that never fires, orders nothing."""
    ends = jackknife_t(estimate.rest_I, estimate.value)
    return Figure(name, estimate.value, max(0.0, ends.low), min(1.0, ends.high), ends.n)


def over_sets(name: str, of: Mapping[str, Sequence[Estimate]]) -> Figure:
    """The mean over dimensions of several sets; variances of delete-one-conversation within each set add up."""
    n_dimensions = sum(map(len, of.values()))
    value = sum(e.value for estimates in of.values() for e in estimates) / n_dimensions
    variance, n, freedom = 0.0, 0, 0
    for estimates in of.values():
        moved_I = np.sum([e.rest_I - e.value for e in estimates], axis=0) / n_dimensions
        size = len(moved_I)
        variance += (size - 1) / size * float(((moved_I - moved_I.mean()) ** 2).sum())
        n, freedom = n + size, freedom + size - 1
    half = float(student.ppf(0.975, freedom)) * variance**0.5
    return Figure(name, value, value - half, value + half, n)


def quadratic_kappa(a_I: np.ndarray, b_I: np.ndarray) -> float | None:
    """Weighted kappa of two raters' whole-numbered scores."""
    low, high = (int(f(np.concatenate([a_I, b_I]))) for f in (np.min, np.max))
    table = np.zeros((high - low + 1, high - low + 1))
    np.add.at(table, (a_I.astype(int) - low, b_I.astype(int) - low), 1)
    return cohen_kappa(table, "quadratic")


def experts_alpha(scores: Mapping[str, np.ndarray]) -> Estimate | None:
    x_RI = np.array([scores[e] for e in EXPERTS])
    whole = alpha(x_RI, "ordinal")
    rest = [alpha(np.delete(x_RI, i, axis=1), "ordinal") for i in range(x_RI.shape[1])]
    if whole is None or any(r is None for r in rest):
        return None
    return Estimate(whole, np.array(rest, dtype=float))


def ids_of(folder: Path, name: str, quick: bool) -> list[str]:
    rows = sorted(read(folder / f"{name}__expert1.csv", IDS[name]))
    return rows[::2] if quick else rows


def read(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as f:
        return {row[key]: row for row in csv.DictReader(f)}


def scores_of(folder: Path, name: str, ids: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """dimension -> rater -> scores, in the order of `ids`."""
    tables = {who: read(folder / f"{name}__{who}.csv", IDS[name]) for who in (*EXPERTS, *OTHERS)}
    return {
        d: {who: np.array([float(table[i][d]) for i in ids]) for who, table in tables.items()} for d in DIMENSIONS[name]
    }


def texts_of(folder: Path, name: str, ids: Sequence[str]) -> list[list[Line]]:
    rows = read(folder / TEXTS[name], IDS[name])
    if name == "epitome":
        return [[("client", rows[i]["seeker_post"]), ("helper", rows[i]["response_post"])] for i in ids]
    return [lines_of(rows[i]["full_conversation"]) for i in ids]


def judging(folder: Path, quick: bool) -> list[Figure]:
    """All figures of empathic_judging: by dimension, then means over the 9 mapped and over all 21 dimensions."""
    found: list[Figure] = []
    mapped: dict[str, dict[str, list[Estimate]]] = {}
    every: dict[str, dict[str, list[Estimate]]] = {}
    for name in DIMENSIONS:
        ids = ids_of(folder, name, quick)
        texts = texts_of(folder, name, ids) if name in TEXTS else []
        ours = {x: [conversation(t, load_lexicon(x)) for t in texts] for x in LEXICONS}
        length_I = np.array([sum(len(said.split()) for who, said in t if who == "helper") for t in texts])
        for d, scores in scores_of(folder, name, ids).items():
            estimates = {"experts": ceiling(scores)} | {o: beside_experts(scores, scores[o]) for o in OTHERS}
            feature = FEATURE_OF.get((name, d))
            if feature:
                for x in LEXICONS:
                    of_judge = np.array([row[feature] for row in ours[x]])
                    estimates[f"reference-{x}"] = beside_experts(scores, of_judge)
                    fires = share_interval((of_judge > 0).astype(float))
                    found.append(Figure(f"{name}/{d}/{feature} above 0/reference-{x}", *fires.model_dump().values()))
                estimates["longer"] = beside_experts(scores, length_I)
            absolute = experts_alpha(scores)
            if absolute is not None:
                ends = jackknife_t(absolute.rest_I, absolute.value)
                found.append(Figure(f"{name}/{d}/ordinal alpha of the experts", *ends.model_dump().values()))
            found += [figure(f"{name}/{d}/order/{who}", e) for who, e in estimates.items()]
            for who, e in estimates.items():
                every.setdefault(who, {}).setdefault(name, []).append(e)
                if feature:
                    mapped.setdefault(who, {}).setdefault(name, []).append(e)
    n = len(FEATURE_OF)
    found += [over_sets(f"mean of the {n} dimensions that the judge can read/{who}", of) for who, of in mapped.items()]
    for who in ("reference-judge", "reference-shadow"):
        less = {
            s: [_less(a, b) for a, b in zip(of, mapped["experts"][s], strict=True)] for s, of in mapped[who].items()
        }
        found.append(over_sets(f"mean of the {n} dimensions that the judge can read/{who} - experts", less))
    whole = ("experts", *OTHERS)
    return found + [over_sets(f"mean of all 21 dimensions/{who}", every[who]) for who in whole]


def _less(a: Estimate, b: Estimate) -> Estimate:
    return Estimate(a.value - b.value, a.rest_I - b.rest_I)


# --- the script ----------------------------------------------------------------------------------


def told(f: Figure) -> str:
    ends = "no interval" if f.low == f.high else f"[{f.low:.3f}, {f.high:.3f}]"
    return f"{f.name:<88} {f.value:6.3f} {ends:<17} n = {f.n}"


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser(__doc__, quick="half of the conversations, a fifth of the dialogues; under a minute")
    args = parser.parse_args(argv)
    data = Path(os.environ.get("PSYCHEPASS_SHARED", ROOT.parent / "shared")) / "data"
    folder, file = data / "empathic_judging", data / "feedback_esconv" / "feedback_ablation_data_train.json"
    absent = [str(p) for p in (folder, file) if not p.exists()]
    if absent:
        print(f"{', '.join(absent)}: absent; set PSYCHEPASS_SHARED to the folder with data/; nothing measured")
        return 0
    for x in LEXICONS:
        print(f"judge reference-{x}, rubric {rubric_version(x)}: text features, not therapeutic competence")
    pairs = pairs_of(file, args.quick)
    found = judging(folder, args.quick) + feedback(pairs)
    print(f"feedback_esconv: {len(pairs)} pairs, one annotation each: no human ceiling")
    print("\n".join(map(told, found)))
    if args.json:
        records.write_json(args.json, [f._asdict() for f in found])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        sys.exit(f"experts: {e}")
