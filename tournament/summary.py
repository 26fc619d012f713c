"""heldout/summary.json: what the held-out comparison found. Pure functions of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from psychepass import stats
from psychepass.schema import Battle, Dimension, Session
from tournament import comparison, drift, gate
from tournament.paired_rewards import PromptRewards

WORDS = (
    "Research software. Clients are fictional; replies are machine-written and may be harmful. "
    "Not for use with people in distress; does not replace a clinician. "
    "Reference-judge scores describe text features, not therapeutic competence. "
    "If someone may be in danger, contact local emergency services.",
    "One training run; intervals cover clients, not training seeds.",
    "Mean reward shows that training worked, not that therapy improved.",
    "Non-inferior to the base model is not a statement of safety.",
)
ONE_JUDGE = "One judge labels, rewards (through the reward model) and measures."


def summarise(
    base: Sequence[Session],
    aligned: Sequence[Session],
    battles: Mapping[str, Sequence[Battle]],
    checks: Mapping[str, Sequence[gate.ReplyCheck]],
    rewards: Sequence[PromptRewards],
    margin: float,
    failures: int = 0,
    seed: int = 0,
    panel: str = "",
) -> dict[str, Any]:
    """All but what only the stage knows (weights, how often opened). `panel` names the tournament's LLM judges.

    `battles` by role, "judge" and "shadow": base against aligned, and base against base (its seeds).
    `checks` by policy, "base" and "aligned": every reply.
    """
    tables, repeats, found = _judged(base, aligned, battles, seed)
    gated = {r: {d: comparison.scores(found[r], d.value) for d in gate.GATED} for r in found}
    judged = sum(map(len, battles.values())) + failures
    return {
        **tables["judge"],
        "shadow": tables["shadow"],
        "base_vs_base": repeats["judge"] | {"shadow": repeats["shadow"]},
        "gaming": comparison.mark_gaming(tables["judge"], tables["shadow"]),
        "clients": {c: {m: float(np.mean(v)) for m, v in of.items()} for c, of in sorted(found["judge"].items())},
        "median_client": comparison.median_client(found["judge"]),
        "reward": reward_table(rewards, base[0].therapist.name, aligned[0].therapist.name, seed),
        "drift": drift.compare(base, aligned),
        "gate": gate.verdict(gated["judge"], gated["shadow"], checks["base"], checks["aligned"], margin),
        "failures": {"n": failures, "share": failures / judged, "judgements": judged},
        "seeds": sorted({s.seed for s in base}),
        "policies": {
            side: {"name": sessions[0].therapist.name, "weights": sessions[0].therapist.weights}
            for side, sessions in (("base", base), ("aligned", aligned))
        },
        "words": [*WORDS, f"{panel} labels and rewards; the reference judge measures." if panel else ONE_JUDGE],
    }


def _judged(
    base: Sequence[Session], aligned: Sequence[Session], battles: Mapping[str, Sequence[Battle]], seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, comparison.Outcomes]]:
    """By role: the table of aligned against base, of base against base, and the outcomes of the first."""
    aligned_ids = {s.id for s in aligned}
    first_seed = {s.id for s in base if s.seed == min(b.seed for b in base)}
    tables, repeats, found = {}, {}, {}
    for role, of_role in battles.items():
        judge = of_role[0].judge.name
        across = [b for b in of_role if {b.session_a, b.session_b} & aligned_ids]
        within = [b for b in of_role if not {b.session_a, b.session_b} & aligned_ids]
        found[role] = comparison.outcomes(across, aligned_ids)
        tables[role] = comparison.table(found[role], judge, seed)
        repeats[role] = comparison.table(comparison.outcomes(within, first_seed), judge, seed)
    return tables, repeats, found


def reward_table(rewards: Sequence[PromptRewards], base: str, aligned: str, seed: int = 0) -> dict[str, Any]:
    """Mean reward on the same prompts: over dimensions, samples and prompts of a client, then over clients.

    `low` and `high` bound the paired difference by sign-flip inversion, null where so few clients bound nothing.
    A prompt that one policy left unanswered is left out for both.
    """
    answered = Counter((r.session, r.turn) for r in rewards if r.replies)
    empty = sum(max(len(r.replies) for r in rewards) - len(r.replies) for r in rewards)
    rewards = [r for r in rewards if answered[r.session, r.turn] == 2]
    by_client: dict[str, dict[str, list[float]]] = {}
    for r in rewards:
        by_client.setdefault(r.profile_id, {base: [], aligned: []})[r.policy].append(r.mean)
    clients = {
        c: {"before": float(np.mean(v[base])), "after": float(np.mean(v[aligned]))}
        for c, v in sorted(by_client.items())
    }
    diffs = [v["after"] - v["before"] for v in clients.values()]
    ends = stats.mean_difference_interval(diffs, seed=seed).model_dump(mode="json")
    return {
        "before": float(np.mean([v["before"] for v in clients.values()])),
        "after": float(np.mean([v["after"] for v in clients.values()])),
        "difference": ends["value"],
        "low": ends["low"],
        "high": ends["high"],
        "p": stats.sign_flip_test(diffs, seed=seed),
        "n": ends["n"],
        "prompts": len({(r.session, r.turn) for r in rewards}),
        "samples": max(len(r.replies) for r in rewards),
        "empty_replies": empty,
        "model": rewards[0].model,
        "clients": clients,
        "dimensions": _by_dimension(rewards, base, aligned, seed),
    }


def _by_dimension(rewards: Sequence[PromptRewards], base: str, aligned: str, seed: int) -> dict[str, Any]:
    """The paired difference a dimension, over the clients whose prompts have it."""
    found = {}
    for dimension in Dimension:
        means: dict[str, dict[str, list[float]]] = {}
        for r in rewards:
            if dimension in r.dimensions:
                column = [row[r.dimensions.index(dimension)] for row in r.rewards]
                means.setdefault(r.profile_id, {base: [], aligned: []})[r.policy].extend(column)
        if means:
            diffs = [float(np.mean(v[aligned]) - np.mean(v[base])) for _, v in sorted(means.items())]
            found[dimension.value] = stats.mean_difference_interval(diffs, seed=seed).model_dump(mode="json")
    return found
