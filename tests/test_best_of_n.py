"""Stage `best-of-n`: choices by hand, known gains under the real judge, and the stage with a tiny policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psychepass import records
from psychepass.cli import main as cli
from psychepass.schema import Dimension, Sampling, Script, Session
from rollout_env.profiles import load_profiles
from rollout_env.script import build_script
from rollout_env.session import simulate
from rollout_env.therapist import TherapistEntry
from tests.conftest import ROOT
from tests.made import identity, session
from tests.test_heldout import SPLITS, Scorer, run_dir
from tests.tiny import tiny_model
from tournament import choices
from tournament.choices import Answers, Draw
from tournament.paired_rewards import PromptRewards
from tournament.reference_judge import ReferenceJudge

CONFIG = str(ROOT / "configs" / "quickstart" / "best-of-n.yaml")


@pytest.fixture
def scorer() -> Iterator[Scorer]:
    made = Scorer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    profiles = load_profiles()
    return [build_script(profiles[p], "short") for p in SPLITS.test[:2]]


# --- choices -----------------------------------------------------------------------------------


def test_scores_are_standardised_a_dimension_and_a_constant_one_adds_nothing() -> None:
    assert choices.scores_of([[1.0, 5.0], [3.0, 5.0]]) == (-0.5, 0.5)
    assert choices.scores_of([[0.3, 1.0], [0.3 + 1e-8, 2.0]]) == (-0.5, 0.5), "rounding, not preference"
    assert choices.scores_of([[0.0, 100.0], [1.0, 300.0], [0.5, 200.0]])[1] == pytest.approx(1.5**0.5)


def test_the_choice_is_the_best_of_the_first_n_and_the_random_reply_is_another() -> None:
    answers = Answers(1, ("a", "b", "c"), (0.0, 2.0, 1.0))
    found = {(n, s): choices.choose(answers, n, str(s)) for n in (1, 2) for s in range(60)}
    assert all(c.best != c.other and c.gain == answers.scores[c.best] - answers.scores[c.other] for c in found.values())  # type: ignore[index]
    assert all(found[2, s].best == 1 for s in range(60) if found[2, s].other != 1)
    assert {found[1, s].best for s in range(60)} == {0, 1, 2}
    assert all(found[1, s].other == found[2, s].other for s in range(60))  # one shuffle for every n
    assert choices.choose(Answers(1, (), ()), 2, "s") == (None, None, 0.0)


def test_a_composed_session_has_other_replies_and_nothing_else() -> None:
    own = session("p1", identity("a"))
    turns = [Answers(t.turn, ("New words.", "Others."), (0.0, 1.0)) for t in own.turns[:2]]
    made = choices.composed(own, turns, (1, None))
    assert made.turns[0].therapist == "Others." and made.turns[0].client == own.turns[0].client
    assert made.turns[1:] == own.turns[1:] and made.id != own.id
    assert choices.composed(own, turns, (None, None)) == own


def test_a_turn_with_too_few_replies_is_left_out() -> None:
    kept, short = (
        PromptRewards(profile_id="p", policy="x", weights="w", session="s", turn=turn, dimensions=(Dimension.EMPATHY,),
                      replies=replies, rewards=tuple((float(i),) for i in range(len(replies))), model="m")
        for turn, replies in ((2, ("a", "b")), (1, ("a",)))
    )  # fmt: skip
    first, second = choices.answers_of([kept, short], samples=2)["s"]
    assert (first.turn, first.replies, second.turn, second.scores) == (1, (), 2, (-1.0, 1.0))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gains_of_a_reward_model_that_agrees_or_disagrees_with_the_judge(
    sign: float, scripts: list[Script], tmp_path: Path
) -> None:
    """Four replies a turn: a rule-based therapist's, twice, and two that say nothing. The reward says which is which,
    so that of any three the choice is the same, and the random reply is the other kind half of the time."""
    entry = TherapistEntry(name="explorer", kind="rules", family="explorer", rules="explorer")
    split_of = {s.profile_id: "test" for s in scripts}
    sessions = simulate(scripts, [entry], [0], split_of, folder=tmp_path, target_words=30, sampling=Sampling(),
                        heldout=False, cache_gib=1.0)  # fmt: skip
    judges = {role: ReferenceJudge(role, dict.fromkeys(Dimension, 0.05)) for role in ("judge", "shadow")}
    found = {}
    for n in (1, 3):
        draws, battles = [], {role: [] for role in judges}
        for own in sessions:
            turns = [
                Answers(t.turn, (t.therapist, t.therapist, "Ok.", "Yes."), (sign, sign, -sign, -sign))
                for t in own.turns
            ]
            script = next(s for s in scripts if s.id == own.script_id)
            for draw in range(8):
                picked = choices.choices_of(turns, own, n, draw, seed=0)
                sides = [choices.composed(own, turns, [getattr(c, side) for c in picked]) for side in ("best", "other")]
                for role, judge in judges.items():
                    battles[role].append(judge.judge(sides[0], sides[1], script))
                draws.append(Draw(profile_id=own.profile_id, session=own.id, n=n, draw=draw, best=(), other=(),
                                  gain=sum(c.gain for c in picked) / len(picked), winners={}))  # fmt: skip
        found[n] = choices.gain(draws, battles, seed=0)
    assert found[3]["overall"]["n"] == 2 and found[3]["overall"]["battles"] == 16
    assert abs(found[1]["overall"]["score"]) < 0.5 < sign * found[3]["overall"]["score"]
    assert sign * found[3]["shadow"]["overall"]["score"] > 0.5
    assert abs(found[1]["reward_score"]["value"]) < 0.3 < found[3]["reward_score"]["value"]


# --- the stage ---------------------------------------------------------------------------------


def made_run(folder: Path, scripts: list[Script], weights: Path) -> Path:
    """What stages before it leave: a tiny policy's sessions with test clients, scripts, the frozen judges."""
    run = run_dir(folder / "run", scripts)
    policy = TherapistEntry(name="tiny", kind="local", family="tiny", weights=str(weights), prompt="paper", seed=1)
    split_of = {s.profile_id: "test" for s in scripts}
    simulate(scripts, [policy], [0], split_of, folder=run, target_words=30, sampling=Sampling(max_tokens=8),
             heldout=False, cache_gib=1.0)  # fmt: skip
    return run


def arguments(run: Path, scorer: Scorer, weights: Path, /, **policy: Any) -> list[str]:
    entry = {"name": "tiny", "kind": "local", "family": "tiny", "weights": str(weights), "prompt": "paper"} | policy
    sizes = ["n=[1,2]", "draws=3", "scorer_timeout_s=60", f"scorer_url={scorer.url}"]
    return ["best-of-n", CONFIG, f"run={run}", *sizes, *(f"policy.{k}={json.dumps(v)}" for k, v in entry.items())]


def test_the_stage_with_a_tiny_policy(tmp_path: Path, scripts: list[Script], scorer: Scorer) -> None:
    weights = tiny_model(tmp_path)
    run = made_run(tmp_path, scripts, weights)
    scorer.dimensions.remove("empathy")
    assert cli(arguments(run, scorer, weights)) == 0
    folder = run / "best_of_n"
    rewards = {(r.session, r.turn): r for r in records.read(folder / "rewards.jsonl", PromptRewards)}
    own = {s.id: s for s in records.read(run / "sessions.jsonl", Session)}
    assert set(rewards) == {(s.id, t.turn) for s in own.values() for t in s.turns}
    draws = records.read(folder / "draws.jsonl", Draw)
    assert len(draws) == 2 * 2 * 3 and {d.session for d in draws} == set(own)
    for d in draws:
        for turn, best, other in zip(own[d.session].turns, d.best, d.other, strict=True):
            replies = rewards[d.session, turn.turn].replies
            assert (best is None) == (other is None) == (len(replies) < 3)
            if best is not None and other is not None and d.n == 2:  # the reward counts words
                words = [len(r.split()) for i, r in enumerate(replies) if i != other]
                assert len(replies[best].split()) == max(words)
    found = records.read_json(folder / "summary.json")
    assert found["clients"] == 2 and found["prompts"] == len(rewards) and found["samples"] == 3
    for row in found["gain"].values():
        assert row["overall"]["low"] <= row["overall"]["score"] <= row["overall"]["high"]
        assert row["overall"]["judge"] == "reference-judge" and row["shadow"]["overall"]["judge"] == "reference-shadow"
        assert (row["overall"]["n"], row["overall"]["battles"]) == (2, 6)
    assert found["reward_model"] == "rm-test" and "does not replace a clinician" in found["words"][0]
    assert found["warnings"] == ["Reward model rm-test was never trained on empathy: its rewards there mean nothing."]
    made = {p.name: p.read_bytes() for p in folder.iterdir()}
    asked = len(scorer.groups)
    assert cli(arguments(run, scorer, weights)) == 0  # done before
    (run / "manifests" / "best-of-n.json").unlink()
    (folder / "summary.json").unlink()
    assert cli(arguments(run, scorer, weights)) == 0  # put together again from what was scored
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == made and len(scorer.groups) == asked


def test_bad_input_is_one_clear_error_and_may_be_mended(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any
) -> None:
    weights = tiny_model(tmp_path)
    run = made_run(tmp_path, scripts, weights)
    other = tiny_model(tmp_path, seed=1)
    rules = {"kind": "rules", "rules": "adviser", "weights": None, "prompt": None}
    for changed, said in (
        ({"name": "nobody"}, "no session of policy 'nobody' with a test client; there are: tiny"),
        ({"weights": str(other)}, "its sessions in"),
        (rules, "is of kind 'rules'; permitted: local, which draws its replies"),
    ):
        assert cli(arguments(run, scorer, weights, **changed)) == 2
        assert said in capsys.readouterr().err and not (run / "manifests" / "best-of-n.json").exists()
    assert cli([*arguments(run, scorer, weights), "n=[0]"]) == 2
    assert "n.0" in capsys.readouterr().err
    assert not scorer.groups and not (run / "best_of_n").exists()
