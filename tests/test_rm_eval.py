"""What rm-eval measures, by cases worked by hand; the stage on a small trained run."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as distributions

from psychepass import records, report_data
from psychepass.cli import main as cli
from psychepass.errors import UserError
from psychepass.schema import Dimension, PreferencePair, Session
from reward_model import agreement, calibration
from reward_model.accuracy import accuracy, measure, other_dimension
from reward_model.calibration import Forecasts
from reward_model.data import Ask
from reward_model.evaluate import overall_ratings
from reward_model.inputs import without
from tests.conftest import ROOT
from tests.made import battle, identity, session
from tests.test_reward_model import base, trained, write_config, write_run  # noqa: F401  # fixtures
from training.pairs import REWARDED, pairs_of

ROW = {"value", "low", "high", "n", "n_clients"}

# --- accuracy ----------------------------------------------------------------------------------


def test_measure_by_hand():
    """One client; a beats b on Crisis and loses Memory. The rewards say a on both, on any dimension."""
    a = session("p1", identity("a", "same"), "test", reply=lambda r, t: "one two three")
    b = session("p1", identity("b", "same"), "test", reply=lambda r, t: "one")
    sessions = {s.id: s for s in (a, b)}
    pairs = pairs_of([battle(a, b, {Dimension.CRISIS: "A", Dimension.MEMORY: "B"})], sessions)
    asks = {(s, Ask(t, d, r)) for s in sessions for t in (6, 10) for d in REWARDED for r in (True, False)}
    rewards = {(s, ask): float(s == a.id and ask.reply) for s, ask in asks}
    train = [p.model_copy(update={"dimension": Dimension.MEMORY}) for p in pairs if p.dimension is Dimension.MEMORY]
    found = measure(pairs, train, sessions, rewards)
    assert (found["accuracy"], found["n"], found["n_clients"]) == (0.5, 2, 1)
    assert found["dimensions"]["crisis"]["value"] == 1 and found["dimensions"]["memory"]["value"] == 0
    assert found["longer_wins"]["value"] == 0.5
    assert found["which_therapist"]["value"] == 0.75  # Memory learned, Crisis never seen: half
    assert found["context_only"]["value"] == 0.5  # all equal
    assert found["same_family"]["value"] == 0.5 and found["same_family"]["n"] == 2


def test_accuracy_weighs_clients_alike():
    pairs = []
    for profile, battles in (("p1", "A"), ("p2", {Dimension.CRISIS: "B"})):
        a, b = session(profile, identity("a"), "test"), session(profile, identity("b"), "test")
        pairs += pairs_of([battle(a, b, battles)], {s.id: s for s in (a, b)})
    wins = {p.id: 1.0 if p.profile_id == "p1" else -1.0 for p in pairs}
    row = accuracy(pairs, lambda p: wins[p.id])
    assert row is not None and row["value"] == 0.5 and row["n"] == 12 and row["n_clients"] == 2
    assert row["low"] == 0 and row["high"] == 1
    assert accuracy([], lambda p: 0.0) is None


def test_the_shuffled_question_is_never_the_own_one():
    assert all(other_dimension(d) is not d for d in REWARDED)
    assert {other_dimension(d) for d in REWARDED} == set(REWARDED)


# --- by therapist ------------------------------------------------------------------------------


def three_way() -> tuple[list[PreferencePair], dict[str, Session]]:
    """One client: a beats b on Crisis, c beats a on Memory, b beats c on Skill; a and b are one family."""
    a, b, c = (session("p1", identity(n, f), "test") for n, f in (("a", "f"), ("b", "f"), ("c", "g")))
    battles = [
        battle(a, b, {Dimension.CRISIS: "A"}),
        battle(c, a, {Dimension.MEMORY: "A"}),
        battle(b, c, {Dimension.SKILL: "A"}),
    ]
    sessions = {s.id: s for s in (a, b, c)}
    return pairs_of(battles, sessions), sessions


def test_pairs_with_each_therapist_and_the_one_left_out():
    """The rewards rank a over b over c: right on a/b and b/c, wrong on c/a."""
    pairs, sessions = three_way()
    worth = {"a": 2.0, "b": 1.0, "c": 0.0}
    rewards = {
        (s.id, Ask(t, d, r)): worth[s.therapist.name] * r
        for s in sessions.values()
        for t in range(1, 12)
        for d in REWARDED
        for r in (True, False)
    }
    found = measure(pairs, [], sessions, rewards, left_out="c")
    assert {n: (r["value"], r["n"]) for n, r in found["pairs_with"].items()} == {
        "a": (0.5, 2),
        "b": (1.0, 2),
        "c": (0.5, 2),
    }
    assert found["left_out"] == {"therapist": "c", "accuracy": found["pairs_with"]["c"]}
    unseen = measure(pairs, [], sessions, rewards, left_out="a")["left_out"]["accuracy"]
    assert unseen["n"] == 3 and unseen["value"] == pytest.approx(2 / 3)  # b is of a's family
    assert measure(pairs, [], sessions, rewards, left_out="nobody")["left_out"]["accuracy"] is None
    assert "left_out" not in measure(pairs, [], sessions, rewards)


def test_leaving_a_therapist_out_of_the_training():
    pairs, sessions = three_way()
    d, e = (session("p1", identity(n), "test") for n in "de")
    sessions |= {s.id: s for s in (d, e)}
    rest = pairs_of([battle(d, e, {Dimension.TRAUMA: "A"})], sessions)
    assert without("a", [*pairs, *rest], sessions) == rest  # with a goes b, of the same weights
    assert [p.dimension for p in without("c", [*pairs, *rest], sessions)] == [Dimension.CRISIS, Dimension.TRAUMA]
    with pytest.raises(UserError, match=r"'b' names 2 sessions and leaves 0 train pairs; permitted: one of a, b, c"):
        without("b", pairs, sessions)
    with pytest.raises(UserError, match="leave_out = 'nobody' names 0 sessions and leaves 3"):
        without("nobody", pairs, sessions)


# --- calibration -------------------------------------------------------------------------------


def made_forecasts(*rows: tuple[int, float, float]) -> Forecasts:
    return Forecasts(*(np.array(column) for column in zip(*rows, strict=True)))


def test_confidence_is_the_logistic_of_the_distance():
    pairs, _ = three_way()
    margins = dict(zip([p.id for p in pairs], (0.0, 2.0, -2.0), strict=True))
    found = calibration.forecasts(pairs, lambda p: margins[p.id])
    sure = 1 / (1 + math.exp(-2))
    assert found.confidence_P.tolist() == pytest.approx([0.5, sure, sure])
    assert found.correct_P.tolist() == [0.5, 1, 0] and found.client_P.tolist() == [0, 0, 0]


def test_bins_have_equal_weight_and_equal_confidences_share_one():
    confidence = np.array([0.9, 0.6, 0.7, 0.8])
    assert calibration.equal_mass_bins(confidence, np.ones(4), 2).tolist() == [1, 0, 0, 1]
    assert calibration.equal_mass_bins(confidence, np.array([3.0, 1.0, 1.0, 1.0]), 2).tolist() == [1, 0, 0, 0]
    assert calibration.equal_mass_bins(np.full(6, 0.5), np.ones(6), 3).tolist() == [1] * 6


def test_ece_by_hand():
    """Two bins. Low: confidences 0.5 and 0.7, one right: gap 0.1. High: 0.8 and 1.0, both right: gap 0.1."""
    found = made_forecasts((0, 0.5, 1), (0, 0.7, 0), (0, 0.8, 1), (0, 1.0, 1))
    assert calibration.expected_calibration_error(found, 2) == pytest.approx(0.1)
    assert calibration.expected_calibration_error(found, 1) == pytest.approx(0)  # the gaps cancel: 0.75 each


def test_every_client_weighs_the_same():
    """Client 0 has three wrong pairs, client 1 one right one, all at 0.5: half are right, so the gap is 0."""
    found = made_forecasts((0, 0.5, 0), (0, 0.5, 0), (0, 0.5, 0), (1, 0.5, 1))
    assert found.weight_P.tolist() == pytest.approx([1 / 6] * 3 + [1 / 2])
    assert calibration.expected_calibration_error(found, 1) == 0


def test_calibration_has_jackknife_intervals_over_clients():
    """One bin. Three clients at confidence 0.5, right on all, all, none: ECE |2/3 - 1/2| = 1/6. Without one of
    the first two: |1/2 - 1/2| = 0; without the third: 1/2. Variance 2/3 of the squares about 1/6."""
    found = made_forecasts((0, 0.5, 1), (1, 0.5, 1), (2, 0.5, 0))
    row = calibration.calibration(found)
    half = distributions.t.ppf(0.975, 2) * math.sqrt(2 / 3 * (2 * (1 / 6) ** 2 + (1 / 3) ** 2))
    assert row["bins"] == 1
    assert row["ece"]["value"] == pytest.approx(1 / 6)
    assert row["ece"]["low"] == 0 and row["ece"]["high"] == pytest.approx(min(1, 1 / 6 + half))
    assert (row["ece"]["n"], row["ece"]["n_clients"]) == (3, 3)
    assert row["overconfidence"]["value"] == pytest.approx(-1 / 6)
    assert row["overconfidence"]["high"] - row["overconfidence"]["low"] == pytest.approx(2 * half)
    assert row["reliability"][0]["value"] == pytest.approx(2 / 3) and row["reliability"][0]["confidence"] == 0.5


def test_a_calibrated_model_has_the_ece_of_chance_and_a_cocksure_one_more():
    rng = np.random.default_rng(1)
    client, confidence = np.arange(2000) % 20, rng.uniform(0.5, 1, 2000)
    true = calibration.calibration(Forecasts(client, confidence, (rng.random(2000) < confidence).astype(float)))
    assert true["bins"] == 10
    assert true["ece_if_calibrated"]["low"] < true["ece"]["value"] < true["ece_if_calibrated"]["high"] < 0.05
    guess = calibration.calibration(Forecasts(client, confidence, (rng.random(2000) < 0.5).astype(float)))
    assert guess["ece"]["low"] > 0.15 > guess["ece_if_calibrated"]["high"]
    assert guess["overconfidence"]["value"] == pytest.approx(guess["ece"]["value"], abs=0.02)
    assert sum(row["n"] for row in true["reliability"]) == 2000
    assert all(190 < row["n"] < 210 for row in true["reliability"])


def test_one_client_bounds_nothing():
    row = calibration.calibration(made_forecasts((0, 0.8, 1), (0, 0.8, 0)))
    assert (row["ece"]["low"], row["ece"]["high"]) == (0, 1)
    assert row["overconfidence"]["low"] is None and row["overconfidence"]["high"] is None


# --- rank agreement ----------------------------------------------------------------------------


def test_kendall_tau_by_hand():
    four = np.array([1.0, 2, 3, 4])
    assert agreement.kendall_tau(four, four) == 1 and agreement.kendall_tau(four, -four) == -1
    assert agreement.kendall_tau(np.array([2.0, 1, 3, 4]), four) == pytest.approx(4 / 6)
    assert agreement.kendall_tau(np.array([1.0, 1, 2, np.nan]), four) == pytest.approx(2 / 3)  # a tie counts 0


def test_mean_rewards_weigh_dimensions_alike():
    """1 for each turn that a local probe stands on (two of nine with 3), 0 for the two global dimensions' turns."""
    one = session("p1", identity("a"), "test")
    rewards = {
        (one.id, ask): 0.0 if ask.dimension.is_global else 3.0 if ask.dimension is Dimension.CRISIS else 1.0
        for ask in agreement.asks_of([one])[one.id]
    }
    assert agreement.mean_rewards([one], rewards)["p1"]["a"] == pytest.approx((3 + 8 * 1) / 11)


def test_rank_agreement_compares_within_clients():
    """Client 2 is paid 10 more all over, and never met a: neither moves the order."""
    ratings = {"a": 140.0, "b": 110.0, "c": 50.0, "unseen": 0.0}
    means = {
        "p1": {"a": 3.0, "b": 2.0, "c": 1.0},
        "p2": {"b": 11.0, "c": 10.0},
        "p3": {"a": 2.0, "b": 3.0, "c": 1.0},
    }
    row = agreement.rank_agreement(means, ratings)
    assert row is not None
    assert row["within_client"]["value"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert row["of_means"].keys() == row["within_client"].keys() == ROW
    assert (row["of_means"]["n"], row["of_means"]["n_clients"]) == (3, 3)
    # centred means: a (1 + 0)/2, b (0 + 0.5 + 1)/3, c (-1 - 0.5 - 1)/3: a and b tie
    assert row["of_means"]["value"] == pytest.approx(2 / 3)
    assert row["of_means"]["low"] == pytest.approx(1 / 3) and row["of_means"]["high"] == 1
    assert agreement.rank_agreement({"p1": means["p1"]}, ratings) is None
    assert agreement.rank_agreement(means, {"a": 1.0}) is None


# --- the stage ---------------------------------------------------------------------------------


def test_metrics_have_calibration_and_no_tau_without_a_tournament(trained):  # noqa: F811
    metrics = records.read_json(trained / "reward_model" / "metrics.json")
    assert metrics["rank_agreement"] is None
    assert set(metrics["pairs_with"]) == {"kind", "curt", "curt2"}
    assert metrics["pairs_with"]["curt"]["n"] == 2 * (11 + 1)
    assert "left_out" not in metrics
    assert metrics["calibration"]["ece"].keys() == ROW and metrics["calibration"]["bins"] == 4
    assert (trained / "figures" / "rm_reliability.png").read_bytes()[:4] == b"\x89PNG"


def test_a_model_of_another_run_trained_without_a_therapist(base, tmp_path):  # noqa: F811
    """leave_out drops a family's pairs from the training; rm-eval elsewhere finds the model, its ranks and the name."""
    run = write_run(tmp_path / "run")
    assert cli(["rm", str(write_config(tmp_path, run, base, leave_out="kind", epochs=1))]) == 0
    assert records.read_json(run / "manifests" / "rm.json")["notes"]["pairs"] == 3  # curt against curt2
    other = write_run(tmp_path / "other", train=0, test=3)
    rated = [{"contestant": n, "rating": r} for n, r in (("kind", 200), ("curt", 60), ("curt2", 40), ("away", 0))]
    records.write_json(other / "ratings.json", {"overall": rated})
    config = tmp_path / "eval.yaml"
    config.write_text(json.dumps({"run": str(other), "model": str(run / "reward_model")}))
    assert cli(["rm-eval", str(config)]) == 0
    metrics = records.read_json(other / "reward_model" / "metrics.json")
    assert metrics["left_out"] == {"therapist": "kind", "accuracy": metrics["pairs_with"]["kind"]}
    assert metrics["left_out"]["accuracy"]["n"] == 3 * 22
    assert metrics["rank_agreement"]["of_means"]["n"] == 3
    assert metrics["rank_agreement"]["within_client"]["n_clients"] == 3
    assert overall_ratings(run / "ratings.json") == {}


def leave_one_out(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NPROC": "1"}
    command = ["bash", str(ROOT / "launch" / "leave_one_out.sh"), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_script_trains_without_the_therapists_named_or_all(trained, base, tmp_path):  # noqa: F811
    run = tmp_path / "a run"
    shutil.copytree(trained, run)
    config = write_config(tmp_path, run, base)
    done = leave_one_out(config, run, "kind", "epochs=1")
    assert done.returncode == 0, done.stderr
    apart = run / "leave_one_out" / "kind"
    metrics, whole = (records.read_json(r / "reward_model" / "metrics.json") for r in (apart, run))
    assert metrics["n"] == whole["n"] and metrics["model"] != whole["model"]
    assert records.read_json(apart / "manifests" / "rm.json")["notes"]["pairs"] == 3  # curt against curt2
    assert report_data.leave_one_out(run) == {"kind": metrics["left_out"]["accuracy"]}
    assert metrics["left_out"]["accuracy"]["n"] == 2 * 22
    every = leave_one_out(config, run)  # curt is the first by name, and its family is in every pair
    assert every.returncode and "leave_out = 'curt' names 6 sessions and leaves 0 train pairs" in every.stderr
    nothing = leave_one_out(config, tmp_path)
    assert nothing.returncode == 2 and "metrics.json: no such file; run psychepass rm-eval" in nothing.stderr


def test_dimensions_that_the_model_was_never_trained_on_are_named(trained, tmp_path, capsys):  # noqa: F811
    run = write_run(tmp_path / "run", train=0, test=2)
    model = tmp_path / "model"
    shutil.copytree(trained / "reward_model", model)
    card = records.read_json(model / "reward_model.json")
    records.write_json(model / "reward_model.json", card | {"dimensions": ["empathy"]})
    records.write(
        run / "pairs.jsonl",
        [p for p in records.read(run / "pairs.jsonl", PreferencePair) if p.dimension in ("empathy", "crisis")],
    )
    config = tmp_path / "eval.yaml"
    config.write_text(json.dumps({"run": str(run), "model": str(model)}))
    assert cli(["rm-eval", str(config)]) == 0
    assert records.read_json(run / "reward_model" / "metrics.json")["untrained"] == ["crisis"]
    assert "was never trained on crisis, which metrics.json reads" in capsys.readouterr().err


def test_bad_input_of_rm_eval_is_one_clear_error(trained, tmp_path, capsys):  # noqa: F811
    run = write_run(tmp_path / "run", train=0, test=2)
    config = tmp_path / "eval.yaml"

    def said(**values) -> str:
        config.write_text(json.dumps({"run": str(run), "model": str(trained / "reward_model")} | values))
        assert cli(["rm-eval", str(config)]) == 2
        return capsys.readouterr().err

    assert "reward_model.json: stage rm-eval needs this file" in said(model=None)
    pairs = records.read(run / "pairs.jsonl", PreferencePair)
    sessions = records.read(run / "sessions.jsonl", Session)
    records.write(run / "sessions.jsonl", sessions[1:])
    assert f"1 sessions of pairs.jsonl are missing, e.g. {sessions[0].id}" in said()
    records.write(run / "sessions.jsonl", sessions)
    records.write(run / "pairs.jsonl", [p.model_copy(update={"split": "train"}) for p in pairs])
    assert "no pair of a test client" in said()
    assert not (run / "reward_model" / "metrics.json").exists()
