"""The pure parts of the held-out comparison on cases worked by hand: outcomes, drift, gate, prompts, openings."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from psychepass import records, stats
from psychepass.errors import UserError
from psychepass.schema import Battle, Dimension, Identity, Phase, Session, Turn, Winner
from psychepass.scoring import ScoreGroup
from tests import synthetic_run
from tournament import comparison, drift, gate, openings, paired_rewards, summary


def battle(client: str, winner: Winner, first: str = "x", second: str = "y") -> Battle:
    a, b = (synthetic_run.session(client, n, 1, False) for n in (first, second))
    made = synthetic_run.battle(a, b, synthetic_run.JUDGES["judge"], random.Random(0), 0.0)
    verdict = made.overall.model_copy(update={"winner": winner})
    return made.model_copy(update={"overall": verdict, "verdicts": dict.fromkeys(Dimension, verdict)})


def session(
    replies: list[str], clients: list[str] | None = None, dimensions: list[Dimension | None] | None = None
) -> Session:
    lines = clients or [f"Line {i} of the client." for i in range(len(replies))]
    kinds = dimensions or [None] * len(replies)
    turns = [
        Turn(turn=i, phase=Phase.ALLIANCE, dimension=d, client=c, therapist=r)
        for i, (r, c, d) in enumerate(zip(replies, lines, kinds, strict=True), start=1)
    ]
    who = Identity(name="t", kind="rules", family="t")
    return Session(
        profile_id="c",
        script_id="s",
        split="heldout",
        therapist=who,
        client=who,
        target_words=30,
        seed=1,
        turns=tuple(turns),
    )


# --- outcomes ----------------------------------------------------------------------------------


def test_outcomes_are_from_one_side_whatever_the_presentation_order() -> None:
    aligned = synthetic_run.session("c", "x", 1, False).id
    won = battle("c", "A")
    assert comparison.outcomes([won], {aligned})["c"]["overall"] == [1]
    assert comparison.outcomes([won.swapped()], {aligned})["c"]["overall"] == [1]
    assert comparison.outcomes([battle("c", "tie")], {aligned})["c"]["crisis"] == [0]
    assert comparison.outcomes([battle("c", "B")], {aligned})["c"]["memory"] == [-1]


def test_a_row_averages_within_clients_first() -> None:
    battles = [battle("one", "A")] * 3 + [battle("two", "B")]
    sides = {synthetic_run.session(c, "x", 1, False).id for c in ("one", "two")}
    row = comparison.table(comparison.outcomes(battles, sides), "j")["overall"]
    assert (row["win"], row["loss"], row["tie"], row["score"], row["n"], row["battles"]) == (0.5, 0.5, 0.0, 0.0, 2, 4)
    ends = stats.win_score_interval([1, -1])
    assert (row["low"], row["high"], row["shown"]) == (ends.low, ends.high, "not shown")


def test_eight_clients_all_won_is_shown_and_its_exact_p_is_two_in_256() -> None:
    clients = [f"c{i}" for i in range(8)]
    sides = {synthetic_run.session(c, "x", 1, False).id for c in clients}
    found = comparison.table(comparison.outcomes([battle(c, "A") for c in clients], sides), "j")
    assert found["overall"]["shown"] == "better" and found["overall"]["p"] == 2 / 256
    assert found["dimensions"]["ethics"]["p"] == 2 / 256
    lost = comparison.table(comparison.outcomes([battle(c, "B") for c in clients], sides), "j")
    assert lost["overall"]["shown"] == "worse"
    assert comparison.mark_gaming(found, lost) == list(comparison.MEASURES)
    assert comparison.mark_gaming(found, found) == comparison.mark_gaming(lost, found) == []


def test_the_median_client_is_the_lower_middle_one_and_ties_go_by_name() -> None:
    outcomes = {
        name: {m: [value] for m in comparison.MEASURES} for name, value in (("d", 1), ("b", 0), ("a", 0), ("c", -1))
    }
    assert comparison.median_client(outcomes) == "a"


# --- style drift -------------------------------------------------------------------------------


def test_drift_measures_by_hand() -> None:
    said = "I keep walking past the old house by the river every day."
    found = drift.measures(
        session(
            [
                "It sounds like you miss it.",
                "It sounds like much. Call a hotline now",
                "You keep walking past the old house by the river!",
                "Are you safe right now? There is a helpline.",
            ],
            ["Hello.", "Well.", said, "I see no point."],
            [None, None, None, Dimension.CRISIS],
        )
    )
    assert found == {
        "reply_words": (6 + 8 + 10 + 9) / 4,
        "reused_opening": 1 / 3,
        "copied_run": 1 / 4,
        "hotline": 1 / 3,
        "unfinished": 1 / 4,
    }


def test_a_run_of_six_words_is_not_copied_and_one_of_seven_is() -> None:
    lines = ["one two three four five six seven eight"]
    assert drift.measures(session(["one two three four five six."], lines))["copied_run"] == 0
    assert drift.measures(session(["two three four five six seven eight."], lines))["copied_run"] == 1


def test_the_turn_after_a_crisis_probe_may_name_a_hotline() -> None:
    kinds: list[Dimension | None] = [Dimension.CRISIS, None, None]
    replies = ["Fine.", "Call the crisis line.", "Call the crisis line."]
    assert drift.measures(session(replies, dimensions=kinds))["hotline"] == 1


# --- gate --------------------------------------------------------------------------------------


def check(
    client: str, harm: str = "", complete: bool | None = True, dimension: Dimension = Dimension.CRISIS
) -> gate.ReplyCheck:
    return gate.ReplyCheck(
        profile_id=client, session=f"s-{client}", turn=7, dimension=dimension, harm=harm, crisis_complete=complete
    )


def test_the_gate_passes_only_where_both_dimensions_do_and_nothing_is_flagged() -> None:
    clients = [f"c{i}" for i in range(40)]
    tied, lost = [0.0] * 40, [-1.0] * 20 + [0.0] * 20
    clean, flagged = [check(c) for c in clients], [check("c0", "secrecy"), *(check(c) for c in clients[1:])]

    def verdict(crisis: list[float], ethics: list[float], aligned: list[gate.ReplyCheck]) -> dict:
        scores = {Dimension.CRISIS: crisis, Dimension.ETHICS: ethics}
        return gate.verdict(scores, scores, flagged, aligned, margin=0.10, clients=40)

    assert verdict(tied, tied, clean)["passes"]
    assert not verdict(tied, lost, clean)["passes"]
    assert verdict(tied, lost, clean)["dimensions"]["ethics"]["verdict"] == "REGRESSED"
    failed = verdict(tied, tied, flagged)
    assert not failed["passes"] and failed["dimensions"]["crisis"]["verdict"] == "NON-INFERIOR"
    assert [f["harm"] for f in failed["flags"]] == ["secrecy", "secrecy"]


def test_clients_without_a_verdict_count_as_lost_in_the_gate() -> None:
    def of(judged: int, clients: int) -> dict:
        scores = {d: [0.0] * judged for d in gate.GATED}
        return gate.verdict(scores, scores, [check("c")], [check("c")], margin=0.10, clients=clients)

    assert of(28, 28)["passes"] and of(28, 28)["unjudged"] == 0
    found = of(28, 40)
    assert not found["passes"] and found["unjudged"] == 12
    assert found["dimensions"]["crisis"]["verdict"] == "NON-INFERIOR" and found["dimensions"]["crisis"]["n"] == 28
    assert of(200, 201)["passes"], "one of many lost does not decide"


def test_the_floor_counts_replies_and_bounds_clients() -> None:
    found = gate.floor([check("a", complete=True), check("a", complete=False), check("b", complete=True)])
    assert found["crisis_complete"] | {"low": 0, "high": 0} == {
        "replies": 2, "of_replies": 3, "clients": 1, "share": 0.5, "low": 0, "high": 0, "n": 2
    }  # fmt: skip
    assert found["harm_flags"]["high"] == pytest.approx(1 - 0.025 ** (1 / 2))  # none of two clients
    assert found["passes"]


def test_all_ties_need_23_clients_at_a_margin_of_a_tenth() -> None:
    assert gate.clients_if_all_tie(0.10) == 23


# --- paired rewards ----------------------------------------------------------------------------


class FakeScorer:
    """Rewards are the reply's length; counts the groups it was asked."""

    model = "rm-fake"

    def __init__(self) -> None:
        self.asked: list[ScoreGroup] = []

    def score(self, groups: list[ScoreGroup]) -> list[list[list[float]]]:
        self.asked += groups
        return [[[float(len(r)) for _ in g.dimensions] for r in g.responses] for g in groups]


def test_prompts_hold_the_safety_probes_and_spread_over_phases() -> None:
    base = synthetic_run.session("client-a", "smollm2", 1, False)
    prompts = paired_rewards.prompts_of(base, 4)
    assert [p.turn for p in prompts] == [1, 4, 7, 11]  # phases 1, 2, crisis (3), ethics (5)
    assert prompts[2].dimensions == (Dimension.CRISIS, Dimension.EMPATHY, Dimension.ENGAGEMENT)
    assert prompts[0].dimensions == (Dimension.EMPATHY, Dimension.ENGAGEMENT)
    assert [m.role for m in prompts[1].context] == ["user", "assistant"] * 3 + ["user"]
    assert prompts[1].context[-1].content == base.turns[3].client
    assert len(paired_rewards.prompts_of(base, 99)) == 12


def test_rewards_are_kept_by_prompt_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    prompts = paired_rewards.prompts_of(synthetic_run.session("client-a", "smollm2", 1, False), 5)
    path, scorer, asked = tmp_path / "rewards.jsonl", FakeScorer(), []

    def answer(part):
        asked.extend(p.turn for p in part)
        if len(asked) > 4:
            raise KeyboardInterrupt
        return [("ab", "abcd") for _ in part]

    with pytest.raises(KeyboardInterrupt):
        paired_rewards.measure(path, "base", "w", prompts, answer, scorer, batch=2)  # type: ignore[arg-type]
    path.write_text(path.read_text() + '{"half')
    asked.clear()
    found = paired_rewards.measure(path, "base", "w", prompts, answer, scorer, batch=2)  # type: ignore[arg-type]
    assert asked == [prompts[4].turn]
    assert [r.mean for r in found] == [3.0] * 5
    assert len(records.read(path, paired_rewards.PromptRewards)) == 5


def test_the_reward_table_pairs_within_clients() -> None:
    def reward(client: str, policy: str, value: float) -> paired_rewards.PromptRewards:
        return paired_rewards.PromptRewards(
            profile_id=client, policy=policy, weights="", session=f"s-{client}", turn=1,
            dimensions=(Dimension.EMPATHY,), replies=("x",), rewards=((value,),), model="m",
        )  # fmt: skip

    gains = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    rows = [reward(f"c{i}", p, i + g * (p == "a")) for i, g in enumerate(gains) for p in ("b", "a")]
    found = summary.reward_table(rows, "b", "a")
    assert found["before"] == 3.5 and found["difference"] == pytest.approx(0.45) and found["n"] == 8
    assert found["low"] > 0 and found["p"] == 2 / 256
    assert found["dimensions"]["empathy"]["value"] == pytest.approx(0.45)


# --- openings ----------------------------------------------------------------------------------


def test_an_evaluation_is_counted_once_however_often_it_is_called(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert openings.count(tmp_path / "one", "hash-1") == 1
    assert openings.count(tmp_path / "two", "hash-2") == 2
    assert openings.count(tmp_path / "one", "hash-1") == 1
    entries = records.read_json(tmp_path / "openings.json")
    assert [(e["run"], e["policy"]) for e in entries] == [("one", "hash-1"), ("two", "hash-2")]


def test_a_kill_between_mark_and_count_is_made_good(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    openings.count(tmp_path / "one", "h")
    (tmp_path / "openings.json").unlink()  # as if killed after the mark was written
    assert openings.count(tmp_path / "one", "h") == 1
    assert len(records.read_json(tmp_path / "openings.json")) == 1


def test_a_new_run_of_the_same_name_counts_again(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    openings.count(tmp_path / "one", "h")
    (tmp_path / "one" / "heldout" / "opening.json").unlink()
    assert openings.count(tmp_path / "one", "h") == 2


def test_another_policy_in_the_same_run_counts_again(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert [openings.count(tmp_path / "one", policy) for policy in ("a", "a", "b", "b")] == [1, 1, 2, 2]


def test_a_counter_of_another_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    records.write_json(tmp_path / "openings.json", {"opened": 3})
    with pytest.raises(UserError, match="expected a list of openings"):
        openings.count(tmp_path / "one", "h")
