"""heldout/summary.json: what the held-out comparison found. Pure functions of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from psychepass import stats
from psychepass.errors import UserError
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
    clients: int,
    failures: int = 0,
    seed: int = 0,
    panel: str = "",
    llm: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All but what only the stage knows (weights, how often opened). `panel` names the tournament's LLM judges, `llm`
    describes those that measure here, if any do; `failures` are then theirs alone, as the share is.

    `battles` by role (tournament/measuring.py): base against aligned, and base against base (its seeds).
    `checks` by policy, "base" and "aligned": every reply, also to clients whom the other one has not met. `clients`:
    how many the held-out set has.

    Raises:
        UserError: the judge read nothing of base against aligned, or of base against base.
    """
    tables, repeats, found = _judged(base, aligned, battles, seed)
    gated = {r: {d: comparison.scores(found[r], d.value) for d in gate.GATED} for r in found}
    judged = (len(battles["judge"]) if llm else sum(map(len, battles.values()))) + failures
    by_words = tables["reference" if llm else "judge"]  # of the two judges that differ in their word lists alone
    beside = {"llm_judges": dict(llm), "reference": tables["reference"],
              "judge_alone": comparison.mark_gaming(tables["judge"], tables["shadow"])} if llm else {}  # fmt: skip
    return {
        **tables["judge"],
        "shadow": tables["shadow"],
        **beside,
        "base_vs_base": repeats["judge"] | {role: of for role, of in repeats.items() if role != "judge"},
        "gaming": comparison.mark_gaming(by_words, tables["shadow"]),
        "clients": {c: {m: float(np.mean(v)) for m, v in of.items()} for c, of in sorted(found["judge"].items())},
        "median_client": comparison.median_client(found["judge"]),
        "reward": reward_table(rewards, base[0].therapist.name, aligned[0].therapist.name, seed),
        "drift": drift.compare(base, aligned),
        "gate": gate.verdict(gated["judge"], gated["shadow"], checks["base"], checks["aligned"], margin, clients),
        "failures": {"n": failures, "share": failures / judged, "judgements": judged},
        "seeds": sorted({s.seed for s in base}),
        "policies": {
            side: {"name": sessions[0].therapist.name, "weights": sessions[0].therapist.weights}
            for side, sessions in (("base", base), ("aligned", aligned))
        },
        "words": [*WORDS, who(panel, str(llm["name"]) if llm else "")],
    }


def who(labels: str, measures: str) -> str:
    """Who labelled and who measures, by name; the reference judge where it is empty."""
    if labels == measures:
        return ONE_JUDGE
    return f"{labels or 'The reference judge'} labels and rewards; {measures or 'the reference judge'} measures."


def _judged(
    base: Sequence[Session], aligned: Sequence[Session], battles: Mapping[str, Sequence[Battle]], seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, comparison.Outcomes]]:
    """By role: the table of aligned against base, of base against base, and the outcomes of the first."""
    aligned_ids = {s.id for s in aligned}
    seeds = {s.id: s.seed for s in base}
    tables, repeats, found = {}, {}, {}
    for role, of_role in battles.items():
        across = [b for b in of_role if {b.session_a, b.session_b} & aligned_ids]
        within = [b for b in of_role if not {b.session_a, b.session_b} & aligned_ids]
        if not across or not within:
            pair = "base against base" if across else "base against aligned"
            raise UserError(f"heldout: no judgement of {pair} could be read; see the judges' failures.jsonl")
        # a judge that is shown both orders decides each twice; the earlier seed is the first side
        within = [b if seeds[b.session_a] < seeds[b.session_b] else b.swapped() for b in within]
        judge = of_role[0].judge.name
        found[role] = comparison.outcomes(across, aligned_ids)
        tables[role] = comparison.table(found[role], judge, seed)
        repeats[role] = comparison.table(comparison.outcomes(within, seeds), judge, seed)
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
