"""ratings.json: the ratings of a tournament, and what they rest on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psychepass.errors import UserError
from psychepass.schema import Battle, JudgeIdentity
from tournament import ratings
from tournament.bradley_terry import PRIOR_TIES
from tournament.field import Field
from tournament.judge import Outcome
from tournament.match_tables import Match, both_orders
from tournament.prediction import calibration


def leaderboard(
    entered: Field, outcomes: list[Outcome], identity: JudgeIdentity, seed: int, ties: ratings.Ties = "half"
) -> dict[str, Any]:
    """ratings.json: ratings a dimension and overall with their intervals, and what they rest on.

    `win_rate` counts a tie as half a win; `graph`, `resamples_flagged`, `groups` and Davidson's `nu`: see
    ratings.Table; `predicted`, of the overall verdicts: see prediction.calibration; `head_to_head` holds overall
    wins of the row's contestant over the column's. `one_order` of `failures`: matches of which one order could not be
    judged; they stand in the ratings with the other alone, which a judge's preference for a position then touches.

    Raises:
        UserError: a contestant or all but one client without a judged battle.
    """
    battles = [o for o in outcomes if isinstance(o, Battle)]
    failures = len(outcomes) - len(battles)
    clients, wins_CKNN = ratings.wins_by_client(battles, entered.contestants)
    overall, ties_CK = ratings.COLUMNS.index("overall"), ratings.ties_by_client(battles) if ties == "davidson" else None
    try:
        table = ratings.rate(wins_CKNN, entered.contestants, seed=seed, ties_CK=ties_CK)
    except ValueError as e:
        raise UserError(f"battles.jsonl: {len(battles)} battles, {failures} failures: {e}") from e
    both = both_orders(battles)
    one_order = 0 if identity.order_free else len(battles) - 2 * len(both)
    tie_rates = {name: _tie_rate(battles, name) for name in ratings.COLUMNS}
    rows = {name: [r.model_dump(mode="json") for r in rows] for name, rows in table.ratings.items()}
    return {
        "judge": identity.name,
        "rubric_version": identity.rubric_version,
        "n_clients": len(clients),
        "n_battles": len(battles),
        "n_contestants": len(entered.contestants),
        "sat_out": sum(len(entered.contestants) - len(of_client) for of_client in entered.sessions.values()),
        "failures": {"n": failures, "share": round(failures / len(outcomes), 6), "one_order": one_order},
        "tie_rate": tie_rates.pop("overall"),
        "tie_rates": tie_rates,
        "ties": {"model": ties, "nu": table.nu},
        "order_consistency": "by construction" if identity.order_free else _order_consistency(both),
        "scale": {"baseline": ratings.BASELINE, "xi": ratings.XI, "prior_ties": PRIOR_TIES},
        "interval": {"method": table.method, "level": 0.95, "unit": "client"},
        "graph": table.graph,
        "resamples_flagged": table.resamples_flagged,
        "groups": table.groups,
        "predicted": calibration(wins_CKNN[:, overall], None if ties_CK is None else ties_CK[:, overall]),
        "overall": rows.pop("overall"),
        "dimensions": rows,
        "head_to_head": {
            "contestants": list(entered.contestants),
            "wins": wins_CKNN[:, overall].sum(axis=0).tolist(),
        },
    }


def _tie_rate(battles: list[Battle], column: str) -> float:
    return _share(battles, lambda b: ratings.verdict(b, column).winner == "tie")


def _order_consistency(both: list[Match]) -> float | None:
    """Share of these matches whose overall verdicts agree; None where there is none."""
    return _share(both, lambda m: m[0].overall.winner == m[1].swapped().overall.winner) if both else None


def _share(items: list[Any], holds: Callable[[Any], bool]) -> float:
    return round(sum(map(holds, items)) / len(items), 6)
