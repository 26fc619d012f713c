"""What the report reads of a run directory, and the plain sentences that its numbers bear out. Reads files only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import Dimension, Failure, Profile, Session
from psychepass.splits import unverified

# file -> the stage to run where it is missing
NEEDED = {
    "manifests/simulate.json": "simulate",
    "judge.json": "tournament",
    "ratings.json": "tournament",
    "manifests/tournament.json": "tournament",
    "data.json": "data",
    "manifests/data.json": "data",
    "reward_model/metrics.json": "rm-eval",
    "manifests/rm-eval.json": "rm-eval",
    "reward_model/train_log.jsonl": "rm",
    "manifests/rm.json": "rm",
    "grpo/metrics.jsonl": "grpo",
    "grpo/overrides.json": "grpo",
    "manifests/grpo.json": "grpo",
    "heldout/summary.json": "heldout",
    "heldout/sessions.jsonl": "heldout",
    "manifests/heldout.json": "heldout",
}
AUDIT = "audit/audit.json"
BEST_OF_N = "best_of_n/summary.json"
LEAVE_ONE_OUT = "leave_one_out/*/reward_model/metrics.json"  # of launch/leave_one_out.sh
OTHER_LISTS = "has the same rubric but other word lists"
OPTIONAL = ("grpo/validation.jsonl", AUDIT, BEST_OF_N)
OPENINGS = "openings.json"
WORDS = (
    "Research software. Clients are fictional; replies are machine-written and may be harmful. "
    "Not for use with people in distress; does not replace a clinician. "
    "Reference-judge scores describe text features, not therapeutic competence. "
    "If someone may be in danger, contact local emergency services."
)
LABELS = {"overall": "Overall"} | {d.value: d.value.capitalize() for d in Dimension}
STAGES = ("simulate", "tournament", "data", "rm", "rm-eval", "grpo", "heldout")


def inputs(run_dir: Path) -> list[Path]:
    """The files the report rests on.

    Raises:
        UserError: one is missing; names it and the stage that writes it.
    """
    openings = run_dir.parent / OPENINGS
    for path, stage in [*((run_dir / name, stage) for name, stage in NEEDED.items()), (openings, "heldout")]:
        if not path.is_file():
            raise UserError(f"{path}: no such file; the report needs it, so run psychepass {stage} first")
    optional = [p for n in OPTIONAL if (p := run_dir / n).is_file()]
    return [*(run_dir / name for name in NEEDED), openings, *optional, *sorted(run_dir.glob(LEAVE_ONE_OUT))]


def leave_one_out(run_dir: Path) -> dict[str, Any]:
    """therapist -> the accuracy of a model trained without it and its family, on the test pairs with one of these."""
    found = [records.read_json(path)["left_out"] for path in sorted(run_dir.glob(LEAVE_ONE_OUT))]
    return {row["therapist"]: row["accuracy"] for row in found}


def audit(run_dir: Path) -> dict[str, Any] | None:
    """What stage audit found of human raters; None where it was not run."""
    path = run_dir / AUDIT
    return records.read_json(path) if path.is_file() else None


def unverified_clients(run_dir: Path) -> str:
    """The mark of clients that no person has verified, those of the comparison included; empty where all are."""
    files = (run_dir / "profiles.jsonl", run_dir / "heldout" / "profiles.jsonl")
    return unverified(p for file in files for p in records.peek(file, Profile))


def clients_under_18(run_dir: Path) -> int:
    """How many clients of the run are minors, those of the comparison included."""
    files = (run_dir / "profiles.jsonl", run_dir / "heldout" / "profiles.jsonl")
    return len({p.profile_id for file in files for p in records.peek(file, Profile) if p.age < 18})


def failed_sessions(run_dir: Path) -> dict[str, int]:
    """How many sessions ended without a reply, or a client's line: in stage simulate, and among the held-out ones."""
    found = {}
    for name, folder in (("simulate", run_dir), ("heldout", run_dir / "heldout")):
        path = folder / "session_failures.jsonl"
        found[name] = len({f.subject for f in records.iterate(path, Failure)}) if path.is_file() else 0
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSONL file of plain objects. Raises UserError with the line's number."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as e:
            raise UserError(f"{path}, line {number}: not JSON: {line[:80]!r}") from e
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected an object, got {line[:80]!r}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: empty; expected one object a line")
    return rows


def manifests(run_dir: Path) -> dict[str, dict[str, Any]]:
    """stage -> manifest, of the stages that have ended.

    Raises:
        UserError: a stage has begun and not ended, so that its files are not whole.
    """
    found = {}
    for stage in STAGES:
        path = run_dir / "manifests" / f"{stage}.json"
        if path.is_file():
            found[stage] = records.read_json(path)
            if found[stage].get("ended") is None:
                raise UserError(f"{path}: stage {stage} has not ended; run psychepass {stage} again first")
    return found


def intervals(tree: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Every number of a JSON tree that has an interval: {"value", "low", "high", "n", "n_clients"} by dotted name.

    Both spellings are read: an object with value, low and high, and x beside x_low and x_high.
    """
    found: dict[str, dict[str, Any]] = {}
    if {"value", "low", "high"} <= tree.keys():
        return {prefix: {k: tree.get(k) for k in ("value", "low", "high", "n", "n_clients")}}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            found |= intervals(value, name)
        elif f"{key}_low" in tree and f"{key}_high" in tree:
            counts = {k: tree.get(k) for k in ("n", "n_clients")}
            found[name] = {"value": value, "low": tree[f"{key}_low"], "high": tree[f"{key}_high"]} | counts
    return found


def headline(summary: Mapping[str, Any], panel: Mapping[str, Any] | None = None) -> list[str]:
    """What the run shows in plain words; the figures stand beside them on the page."""
    overall, reward = summary["overall"], summary["reward"]
    said = {
        "better": "On clients it had never met, the aligned policy was judged better than the base policy.",
        "worse": "On clients it had never met, the aligned policy was judged worse than the base policy.",
        "not shown": "On clients it had never met, the aligned policy is not shown to differ from the base policy.",
    }[overall["shown"]]
    shadow = summary["shadow"]["overall"]["shown"]
    lists = "reads word lists and had no part in the training" if "llm_judges" in summary else OTHER_LISTS
    if "overall" in summary["gaming"] and "llm_judges" not in summary:
        second = f"The shadow judge, which {lists}, does not show it: consistent with gaming of word lists."
    elif shadow == overall["shown"]:
        second = f"The shadow judge, which {lists}, agrees."
    else:
        second = f"The shadow judge, which {lists}, says: {shadow}."
    low, high = reward["low"], reward["high"]
    if low is not None and low > 0:
        third = "Its mean reward on the same prompts rose"
    elif high is not None and high < 0:
        third = "Its mean reward on the same prompts fell"
    else:
        third = "Its mean reward on the same prompts is not shown to have changed"
    third += ", which speaks of training, not of therapy."
    who = "One judge labelled, rewarded (through the reward model) and measured."
    labels, measures = (panel or {}).get("name"), summary.get("llm_judges", {}).get("name")
    if labels != measures:
        who = (
            f"{labels or 'The reference judge'} labelled and rewarded (through the reward model); "
            f"{measures or 'the reference judge'} measured."
        )
    return [said, second, third, who]


def transcripts(sessions: Sequence[Session], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The median client's session of each policy, turn beside turn: the first seed that both have, else each's first.

    Replies with a harm flag are withheld; Crisis probes and the turn after each are marked to be folded.

    Raises:
        UserError: summary and sessions do not belong together.
    """
    client = summary["median_client"]
    of_seed: dict[str, dict[int, Session]] = {}
    for side in ("base", "aligned"):
        name = summary["policies"][side]["name"]
        of_seed[side] = {s.seed: s for s in sessions if s.profile_id == client and s.therapist.name == name}
        if not of_seed[side]:
            raise UserError(f"heldout/sessions.jsonl: no session of {name!r} with client {client!r}")
    shared = min(of_seed["base"].keys() & of_seed["aligned"].keys(), default=None)
    sides = {side: own[min(own) if shared is None else shared] for side, own in of_seed.items()}
    flagged = {(f["session"], f["turn"]) for f in summary["gate"]["flags"]}
    turns, crisis_at = [], -1
    for base, aligned in zip(sides["base"].turns, sides["aligned"].turns, strict=True):
        if base.dimension is Dimension.CRISIS:
            crisis_at = base.turn
        replies = {
            side: None if (sides[side].id, turn.turn) in flagged else turn.therapist
            for side, turn in (("base", base), ("aligned", aligned))
        }
        lines = [base.client] if base.client == aligned.client else [base.client, aligned.client]
        turns.append(
            {
                "turn": base.turn,
                "phase": base.phase,
                "dimension": base.dimension.value if base.dimension else None,
                "crisis": crisis_at in (base.turn, base.turn - 1) and crisis_at > 0,
                "client": lines,
                "replies": replies,
            }
        )
    withheld = sum(reply is None for turn in turns for reply in turn["replies"].values())
    return {
        "client": client,
        "turns": turns,
        "withheld": withheld,
        "seeds": {side: own.seed for side, own in sides.items()},
    }


ACCURACY_LABELS = {
    "accuracy": "Reward model",
    "same_family": "Reward model: pairs of one model family",
    "same_family_longer_wins": "Baseline: longer wins, one family",
    "longer_wins": "Baseline: the longer reply wins",
    "which_therapist": "Baseline: which therapist wrote it",
    "context_only": "Baseline: context only, reply deleted",
    "shuffled_dimensions": "Control: dimensions shuffled",
}


APART = ("calibration", "rank_agreement", "pairs_with", "left_out")  # of metrics.json, shown beside the accuracies


def accuracies(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(label, {"value", "low", "high", "n", "n_clients"}): the model, its baselines, then its dimensions.

    Raises:
        UserError: no accuracy with an interval.
    """
    found = intervals({k: v for k, v in metrics.items() if k not in APART})
    if "accuracy" not in found:
        raise UserError(
            "reward_model/metrics.json: no accuracy with accuracy_low and accuracy_high; run psychepass rm-eval"
        )
    rows = []
    for name, row in found.items():
        last = name.split(".")[-1]
        label = ACCURACY_LABELS.get(last, LABELS.get(last) or last.replace("_", " ").capitalize())
        known = list(ACCURACY_LABELS)
        place = known.index(last) if last in known else len(known) + (last in LABELS)
        rows.append((place, list(LABELS).index(last) if last in LABELS else 0, label, row))
    rows.sort(key=lambda r: r[:2])
    return [(label, row) for *_, label, row in rows]
