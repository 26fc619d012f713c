"""The load benchmark measures what it says: figures by hand, and a round against a real service."""

from __future__ import annotations

import asyncio

import pytest

from psychepass.scoring import Scorer
from reward_model import model as models
from reward_model.scorer import GroupScorer
from tests.benchmarks import scorer_load
from tests.benchmarks.scorer_load import Round
from tests.test_serve import served
from tests.tiny import tiny_model, tiny_tokenizer
from training.render import Renderer


def test_figures_by_hand() -> None:
    one, two = [[[1.0, 2.0]]], [[[1.0, 2.5]]]
    rounds = {
        "service": [Round([1.0, 3.0], 4.0, one * 2), Round([1.0], 1.0, one)],
        "in process": [Round([0.5, 0.5], 1.0, one * 2), Round([0.5], 0.5, two)],
    }
    found = {row["name"]: row for row in scorer_load.figures(rounds, "whole", 1)}
    assert found["whole, service: groups a second"] == {
        "name": "whole, service: groups a second",
        "value": 0.75,
        "low": 0.5,
        "high": 1.0,
        "n": 3,
    }
    assert (
        found["whole, service: latency s, 50%"]["value"] == 1.5
        and found["whole, service: latency s, 50%"]["high"] == 2.0
    )
    assert found["whole, service / in process: groups a second"]["value"] == pytest.approx((0.25 + 0.5) / 2)
    assert scorer_load.difference(rounds) == 0.5
    asked_apart = {row["name"]: row["value"] for row in scorer_load.figures(rounds, "apart", 4)}
    assert asked_apart["apart, service: groups a second"] == 0.75 / 4, "four requests are one group"


def test_a_round_over_http_gives_the_rewards_of_the_process_and_keeps_its_time_limit(tmp_path) -> None:
    model = models.from_base(tiny_model(tmp_path), 1, seed=0)
    scorer = GroupScorer(model, Renderer(tiny_tokenizer(), 1024, 256), "tiny-rm@0")
    args = scorer_load.arguments(["--groups", "6", "--responses", "2", "--turns", "2"])
    groups = scorer_load.made_groups(args)
    assert len({g.model_dump_json() for g in groups}) == 6
    assert [g.responses for g in scorer_load.single(groups[:1])] == [(r,) for r in groups[0].responses]
    with served(scorer, max_waiting=2) as url:  # fewer than the callers: refused ones come again
        whole = asyncio.run(scorer_load.over_http(Scorer(url, 300), groups, 4, 300.0))
        none = asyncio.run(scorer_load.over_http(Scorer(url, 300), groups, 4, -1.0))
    assert whole.rewards == scorer_load.in_process(scorer, groups, 60.0).rewards
    assert len(whole.latency_s) == 6 and whole.seconds >= max(whole.latency_s)
    assert none.latency_s == [] and len(scorer_load.in_process(scorer, groups, -1.0).latency_s) == 1
