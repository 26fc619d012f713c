"""From a scorer's raw rewards of one group to the scores that GRPO compares.

Letters in names: R responses of a group, D dimensions, B samples of a batch.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from psychepass.errors import UserError
from psychepass.scoring import constant

EPSILON = 1e-6  # verl's, in the denominator


def group_scores(rewards_RD: Sequence[Sequence[float]]) -> list[float]:
    """Scores of the R responses: each dimension standardised within the group, then averaged (GDPO).

    PsychePass section 3.3 standardises one reward, A = (r - mean) / std; with one dimension this is that,
    with verl's unbiased std. With several, the mean of D standardised rewards has a std below 1 where the
    dimensions disagree, and it is left so: verl only subtracts the group's mean afterwards. A dimension
    that is constant in the group says nothing and adds 0.

    Raises:
        ValueError: fewer than two responses, rows of different length, no dimension, a value not finite.
    """
    if len(rewards_RD) < 2 or len({len(row) for row in rewards_RD}) != 1 or not rewards_RD[0]:
        raise ValueError(f"expected at least 2 responses x 1 dimension, got rows of {[len(r) for r in rewards_RD]}")
    if not all(math.isfinite(r) for row in rewards_RD for r in row):
        raise ValueError(f"a reward is not finite: {rewards_RD}")
    columns_DR = [_standardise([row[d] for row in rewards_RD]) for d in range(len(rewards_RD[0]))]
    return [sum(column[i] for column in columns_DR) / len(columns_DR) for i in range(len(rewards_RD))]


def _standardise(rewards_R: list[float]) -> list[float]:
    mean = statistics.fmean(rewards_R)
    std = statistics.stdev(rewards_R)
    if constant(mean, std):
        return [0.0] * len(rewards_R)
    return [(r - mean) / (std + EPSILON) for r in rewards_R]


def guard(
    scores_B: Sequence[float], logprobs_B: Sequence[float], groups_B: Sequence[str], band: tuple[float, float]
) -> tuple[list[float], list[bool]]:
    """The likelihood guard: a reply whose mean log-probability a token under the reference model lies
    outside `band` (the dev replies' 1 % and 99 % quantiles) gets the lowest score of its group.

    Both sides of the band count: degenerate repetition is too likely, word salad too unlikely. Returns the
    scores and which were guarded. A group that is outside altogether ends with equal scores: no gradient.
    """
    low, high = band
    lowest: dict[str, float] = defaultdict(lambda: math.inf)
    for score, group in zip(scores_B, groups_B, strict=True):
        lowest[group] = min(lowest[group], score)
    outside_B = [not low <= logprob <= high for logprob in logprobs_B]
    guarded_B = [
        lowest[group] if outside else score for score, group, outside in zip(scores_B, groups_B, outside_B, strict=True)
    ]
    return guarded_B, outside_B


@dataclass
class _Group:
    done: asyncio.Future[list[Any]]
    items: list[Any] = field(default_factory=list)


class Gather:
    """Collects the responses of a group that one process samples side by side, and scores them in one call.

    verl runs the n samples of a prompt as tasks of one event loop; each joins under the prompt's uid.
    """

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._failed: dict[str, Exception] = {}

    async def join(
        self, uid: str, size: int, item: Any, score: Callable[[list[Any]], Awaitable[list[Any]]], timeout_s: float
    ) -> Any:
        """What `score(items)` gives for this item, once `size` items have joined.

        Raises:
            UserError: the others did not come within `timeout_s`.
            Exception: what `score` raised, in every sibling.
        """
        if uid in self._failed:
            raise self._failed[uid]
        group = self._groups.setdefault(uid, _Group(asyncio.get_running_loop().create_future()))
        place = len(group.items)
        group.items.append(item)
        if len(group.items) == size:
            del self._groups[uid]
            await self._finish(group, score)
        try:
            async with asyncio.timeout(timeout_s):
                return (await asyncio.shield(group.done))[place]
        except TimeoutError:
            if len(group.items) == size:  # all came; the scorer has a time limit of its own, which may be longer
                return (await asyncio.shield(group.done))[place]
            self._groups.pop(uid, None)
            raise UserError(
                f"group {uid}: {len(group.items)} of {size} responses came within {timeout_s:g} s; "
                "the rollout server is stuck or a sibling was lost"
            ) from None

    @staticmethod
    async def _finish(group: _Group, score: Callable[[list[Any]], Awaitable[list[Any]]]) -> None:
        try:
            group.done.set_result(await score(group.items))
        except Exception as e:
            group.done.set_exception(e)

    def fail(self, uid: str, error: Exception) -> None:
        """A sibling could not be sampled: nobody need wait for the time-out."""
        self._failed[uid] = error
        group = self._groups.pop(uid, None)
        if group is not None and not group.done.done():
            group.done.set_exception(error)
            group.done.exception()  # retrieved, so that a group without waiters does not warn
