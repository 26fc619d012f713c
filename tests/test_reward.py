"""Rewards worked by hand: standardisation within a group, the likelihood guard, and the gathering of groups."""

from __future__ import annotations

import asyncio
import math

import pytest

from psychepass.errors import UserError
from rl.reward import Gather, group_scores, guard


def test_one_dimension_is_the_papers_advantage() -> None:
    """Rewards 1, 2, 3: mean 2, unbiased std 1."""
    assert group_scores([[1.0], [2.0], [3.0]]) == pytest.approx([-1.0, 0.0, 1.0], abs=1e-5)


def test_dimensions_are_standardised_apart_and_then_averaged() -> None:
    """Dimension 1 is ten thousand times as wide as dimension 2 and still weighs the same.

    (0, 10000) has mean 5000 and std 7071.07: -0.7071, +0.7071; (1, 0): +0.7071, -0.7071; the mean is 0.
    """
    assert group_scores([[0.0, 1.0], [10000.0, 0.0]]) == pytest.approx([0.0, 0.0], abs=1e-5)
    scores = group_scores([[0.0, 1.0, 5.0], [10000.0, 0.0, 7.0]])
    assert scores == pytest.approx([-0.7071 / 3, 0.7071 / 3], abs=1e-4)


def test_a_constant_dimension_adds_nothing() -> None:
    assert group_scores([[3.0, 1.0], [3.0, 2.0], [3.0, 3.0]]) == pytest.approx([-0.5, 0.0, 0.5], abs=1e-5)
    assert group_scores([[2.0], [2.0 + 1e-9]]) == [0.0, 0.0]


@pytest.mark.parametrize("bad", [[[1.0]], [[1.0], [1.0, 2.0]], [[], []], [[1.0], [math.nan]], [[1.0], [math.inf]]])
def test_bad_rewards_are_refused(bad: list[list[float]]) -> None:
    with pytest.raises(ValueError):
        group_scores(bad)


def test_guarded_replies_get_their_groups_minimum() -> None:
    scores = [1.0, 0.5, -1.5, 2.0, -2.0]
    logprobs = [-0.1, -2.0, -3.0, -9.0, -2.0]
    groups = ["a", "a", "a", "b", "b"]
    guarded, outside = guard(scores, logprobs, groups, (-4.0, -0.5))
    assert guarded == [-1.5, 0.5, -1.5, -2.0, -2.0]
    assert outside == [True, False, False, True, False]


def test_the_guards_band_includes_its_ends() -> None:
    assert guard([1.0, 0.0], [-4.0, -0.5], ["a", "a"], (-4.0, -0.5)) == ([1.0, 0.0], [False, False])


def test_a_group_is_scored_in_one_call() -> None:
    calls: list[list[str]] = []

    async def score(items: list[str]) -> list[str]:
        calls.append(items)
        return [i.upper() for i in items]

    async def run() -> list[str]:
        gather = Gather()
        joins = [gather.join(uid, 3, uid + name, score, 5.0) for name in "xyz" for uid in ("g", "h")]
        return await asyncio.gather(*joins)

    assert asyncio.run(run()) == ["GX", "HX", "GY", "HY", "GZ", "HZ"]
    assert calls == [["gx", "gy", "gz"], ["hx", "hy", "hz"]]


def test_a_failed_score_reaches_every_sibling() -> None:
    async def score(items: list[str]) -> list[float]:
        raise UserError("scorer is down")

    async def run() -> list[object]:
        gather = Gather()
        return await asyncio.gather(*(gather.join("g", 2, i, score, 5.0) for i in "xy"), return_exceptions=True)

    assert [str(e) for e in asyncio.run(run())] == ["scorer is down"] * 2


def test_a_partial_group_times_out_with_its_count() -> None:
    async def score(items: list[str]) -> list[float]:
        return [0.0] * len(items)

    with pytest.raises(UserError, match=r"group g: 1 of 4 responses came within 0.05 s"):
        asyncio.run(Gather().join("g", 4, "x", score, 0.05))


def test_a_lost_sibling_ends_the_wait_of_those_before_and_after_it() -> None:
    async def score(items: list[str]) -> list[float]:
        return [0.0] * len(items)

    async def run() -> list[object]:
        gather = Gather()
        early = asyncio.create_task(gather.join("g", 2, "x", score, 60.0))
        await asyncio.sleep(0)
        gather.fail("g", RuntimeError("server gone"))
        late = gather.join("g", 2, "y", score, 60.0)
        return await asyncio.gather(early, late, return_exceptions=True)

    assert [str(e) for e in asyncio.run(run())] == ["server gone"] * 2
