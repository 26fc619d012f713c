"""What the tournament needs of a judge, and a match: one pair of sessions shown in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from psychepass.schema import Battle, Dimension, Failure, JudgeIdentity, Script, Session

POINTS = {"A": 1.0, "tie": 0.5, "B": 0.0}
Outcome = Battle | Failure


class Judge(Protocol):
    """Decides all 12 dimensions and the overall verdict in one call.

    A judgement that cannot be read is returned as a Failure with `stage` "tournament" and `subject`
    `subject(session_a.id, session_b.id)`, never as a tie.
    """

    @property
    def identity(self) -> JudgeIdentity: ...

    def judge(self, session_a: Session, session_b: Session, script: Script, *, round: int) -> Outcome: ...


def subject(id_a: str, id_b: str) -> str:
    """How a Failure names the presentation of two sessions."""
    return f"{id_a} {id_b}"


def match(
    judge: Judge, a: Session, b: Session, script: Script, round: int, known: Mapping[str, Outcome] | None = None
) -> list[Outcome]:
    """The outcomes of both orders; `known` (by `subject`) holds those judged before, which are not judged again.

    An order-free judge scores each session alone, so its second order is a copy by construction: it is
    computed as a check of determinism and counted once.

    Raises:
        RuntimeError: an order-free judge decided differently in the second order.
    """
    known = known or {}
    orders: Sequence[tuple[Session, Session]] = ((a, b),) if judge.identity.order_free else ((a, b), (b, a))
    outcomes: list[Outcome] = []
    for first, second in orders:
        name = subject(first.id, second.id)
        if name in known:
            outcomes.append(known[name])
            continue
        outcome = judge.judge(first, second, script, round=round)
        if judge.identity.order_free and isinstance(outcome, Battle):
            _check_order_free(outcome, judge.judge(second, first, script, round=round))
        outcomes.append(outcome)
    return outcomes


def points_of(session_id: str, outcomes: Sequence[Outcome]) -> float | None:
    """A session's points of a match: its overall verdict averaged over the orders that could be judged.

    None where no order could be judged.
    """
    battles = [o for o in outcomes if isinstance(o, Battle)]
    points = [POINTS[(b if b.session_a == session_id else b.swapped()).overall.winner] for b in battles]
    return sum(points) / len(points) if points else None


def _check_order_free(battle: Battle, second: Outcome) -> None:
    if isinstance(second, Battle):
        back = second.swapped()
        differing = [d.value for d in Dimension if battle.verdicts[d].winner != back.verdicts[d].winner]
        if battle.overall.winner != back.overall.winner:
            differing.append("overall")
        if not differing:
            return
    else:
        differing = [f"everything: {second.reason}"]
    raise RuntimeError(
        f"judge {battle.judge.name} says it is order-free, but sessions {battle.session_a} and {battle.session_b} "
        f"were decided otherwise in the second order on {', '.join(differing)}"
    )
