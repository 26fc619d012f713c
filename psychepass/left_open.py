"""What endpoints left undone in one call of a stage, and the error in which that ends."""

from __future__ import annotations

from collections import Counter

from psychepass.answers import Refused, Transport
from psychepass.endpoint import Endpoint
from psychepass.errors import Unfinished, UserError
from psychepass.ledger import BudgetSpent


class LeftOpen:
    """Why items wait for the next call of the stage, and how many.

    Errors of one kind count together, with the details of the first of them.
    """

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self._first: dict[tuple[str, str], str] = {}
        self._unanswered = self._spent = False

    def add(self, error: Transport | Refused | BudgetSpent, endpoint: Endpoint, n: int = 1) -> None:
        told = str(error)
        if isinstance(error, Transport):
            self._unanswered = True
            told = self._first.setdefault((endpoint.name, error.reason), f"{endpoint.name}: {told}")
        self._spent |= isinstance(error, BudgetSpent)
        self.reasons[told] += n

    def total(self) -> int:
        return self.reasons.total()

    def error(self, what: str, kept: str) -> UserError:
        """`what` was left, `kept` was not. Unfinished where an endpoint did not answer, so that calling the stage
        again is enough to get on: not where the budget is spent, or all that is left was refused."""
        reasons = "; ".join(f"{n}: {reason}" for reason, n in self.reasons.most_common())
        kind = Unfinished if self._unanswered and not self._spent else UserError
        return kind(f"{what} ({reasons}); {kept} is kept, call the stage again to go on")
