"""Stage `analysis`: its tables on battles made by hand, its controls on verdicts drawn by rule, and the stage whole."""

from __future__ import annotations

import csv
import html
import random
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psychepass import cli, records
from psychepass.schema import Battle, Dimension, JudgeIdentity, Session, Verdict, Winner
from tests.handmade import session_of, short_script
from tournament import analysis_page, convergence, length_control, match_tables, ratings, run

JUDGE = JudgeIdentity(name="fake", model="fake", rubric_version="1")
SLICED = "stage slices"


def battle(
    client: str, a: str, b: str, overall: Winner, round: int = 1, judge: JudgeIdentity = JUDGE, **of: Winner
) -> Battle:
    """Sessions are named client-contestant; dimensions follow the overall verdict but for those named."""
    return Battle(
        profile_id=client,
        split="train",
        round=round,
        session_a=f"{client}-{a}",
        session_b=f"{client}-{b}",
        contestant_a=a,
        contestant_b=b,
        judge=judge,
        verdicts={d: Verdict(winner=of.get(d.value, overall)) for d in Dimension},
        overall=Verdict(winner=overall),
    )


def one(rows: list[dict], **keys: object) -> dict:
    found = [r for r in rows if all(r[k] == v for k, v in keys.items())]
    assert len(found) == 1, (keys, found)
    return found[0]


def test_position_bias_by_hand():
    # client 1: the first side wins both orders; client 2: x wins both, so each side once; client 3: one order only
    battles = [battle("1", "x", "y", "A"), battle("1", "y", "x", "A"), battle("2", "x", "y", "A"),
               battle("2", "y", "x", "B"), battle("3", "x", "y", "A")]  # fmt: skip
    matches = match_tables.both_orders(battles)
    assert len(matches) == 2
    rows = match_tables.position_bias(matches)
    first, second = (one(rows, measure="overall", verdict=v) for v in "AB")
    assert (first["value"], second["value"]) == (0.75, 0.25) and first["n"] == 2 and first["battles"] == 4
    net = one(rows, measure="overall", verdict="A - B")
    assert net["value"] == 0.5 and -1 <= net["low"] <= 0 < net["high"] <= 1
    assert one(match_tables.position_bias(matches[1:]), measure="crisis", verdict="A - B")["value"] == 0


def test_order_consistency_by_hand():
    battles = [battle("1", "x", "y", "A"), battle("1", "y", "x", "A"), battle("1", "x", "z", "A", memory="tie"),
               battle("1", "z", "x", "B"), battle("2", "y", "x", "tie"), battle("2", "x", "y", "tie")]  # fmt: skip
    rows = match_tables.order_consistency(match_tables.both_orders(battles), ["x", "y", "z"])
    assert one(rows, of="measure", measure="overall")["value"] == pytest.approx(2 / 3)
    assert one(rows, of="measure", measure="memory")["value"] == pytest.approx(1 / 3)
    assert one(rows, of="pair", first="x", second="y") | {"low": 0, "high": 0} == {
        "of": "pair", "measure": "overall", "first": "x", "second": "y", "value": 0.5, "low": 0, "high": 0, "n": 2,
        "battles": 2,
    }  # fmt: skip
    assert one(rows, of="pair", first="x", second="z")["value"] == 1


def test_one_sided_by_hand():
    battles = [battle("1", "x", "z", "A"), battle("2", "z", "x", "B"), battle("1", "x", "y", "A", ethics="tie"),
               battle("1", "y", "z", "tie")]  # fmt: skip
    rows = match_tables.one_sided(battles, ["x", "y", "z"])
    assert one(rows, of="all")["value"] == 0.5
    assert one(rows, of="distance", distance=1)["value"] == 0 and one(rows, of="distance", distance=2)["value"] == 1
    assert one(rows, of="pair", first="x", second="z")["n"] == 2


def test_repetition_counts_the_same_presentation_alone():
    battles = [battle("1", "x", "y", "A"), battle("1", "y", "x", "B"), battle("2", "x", "y", "A")]
    again = [battle("1", "x", "y", "A", skill="B"), battle("1", "y", "x", "A"), battle("3", "x", "y", "A")]
    rows = match_tables.repetition(battles, again)
    assert one(rows, measure="overall")["value"] == 0.5 and one(rows, measure="overall")["battles"] == 2
    assert one(rows, measure="skill")["value"] == 0


def test_repetition_of_three_judgements_is_the_mean_over_their_pairs():
    judged = [[battle("1", "x", "y", w), battle("2", "x", "y", "A")] for w in ("A", "A", "tie")]
    row = one(match_tables.repetition(*judged), measure="overall")
    assert row["value"] == pytest.approx((1 / 3 + 1) / 2) and (row["n"], row["battles"]) == (2, 2)
    assert match_tables.repetition(judged[0])[0]["value"] is None  # judged once: nothing to compare


def test_without_battles_a_row_is_empty_not_zero():
    assert match_tables.share_row([], measure="overall") == {
        "measure": "overall", "value": None, "low": None, "high": None, "n": 0, "battles": 0,
    }  # fmt: skip


def drawn(clients: int, names: str, seed: int = 0, noise: float = 0.25) -> list[Battle]:
    """A round robin in both orders: the earlier letter wins but for noise; dimensions are drawn on their own."""
    rng = random.Random(seed)

    def verdict(a: str, b: str) -> Winner:
        return ("A" if a < b else "B") if rng.random() > noise else rng.choice(("A", "tie", "B"))

    found = []
    for c in range(clients):
        for number, (a, b) in enumerate(combinations(names, 2)):
            for x, y in ((a, b), (b, a)):
                of = {d.value: verdict(x, y) for d in Dimension}
                found.append(battle(f"c{c}", x, y, verdict(x, y), round=1 + number % (len(names) - 1), **of))
    return found


def test_win_rates_are_those_of_the_ratings():
    battles = drawn(5, "abcd")
    _, wins_CKNN = ratings.wins_by_client(battles, list("abcd"))
    table = ratings.rate(wins_CKNN, list("abcd"))
    rows = match_tables.win_rates(battles, list("abcd"))
    for measure, of in table.ratings.items():
        for row in of:
            found = one(rows, contestant=row.contestant, measure=measure)
            assert found["value"] == pytest.approx(row.win_rate, abs=1e-6) and found["n"] == 5
            assert found["battles"] == row.battles


def test_swiss_is_replayed_from_a_round_robin():
    battles = drawn(6, "abcdef")
    assert convergence.everybody_met(battles) and not convergence.everybody_met(battles[2:])
    rounds = convergence.replay("swiss", battles, seed=0)
    played = [b for of_round in rounds for b in of_round]
    assert len(rounds) == 3 and len(played) == 6 * 3 * 3 * 2 and {b.id for b in played} <= {b.id for b in battles}
    assert len({b.id for b in played}) == len(played)  # no rematch
    assert len(convergence.replay("round_robin", battles, seed=0)) == 5
    rows = convergence.agreement_by_round("round_robin", convergence.rounds_of(battles), battles, list("abcdef"))
    assert rows[-1]["value"] == rows[-1]["low"] == 1 and rows[-1]["battles"] == 60
    assert all(-1 <= r["low"] <= r["value"] <= 1 for r in rows)
    by_round = convergence.ratings_by_round("swiss", rounds, list("abcdef"))
    assert {r["battles"] for r in by_round} == {12, 24, 36} and len(by_round) == 18


# --- length control ------------------------------------------------------------------------------


def test_the_regression_without_covariates_is_the_rating():
    battles = drawn(4, "abcd")
    x_MP = length_control._design(
        battles, {i: np.zeros(0) for b in battles for i in (b.session_a, b.session_b)}, "abcd"
    )
    points = np.array([{"A": 1.0, "tie": 0.5, "B": 0.0}[b.overall.winner] for b in battles])
    theta_N = length_control.fit(x_MP, points, np.ones(len(battles)))
    _, wins_CKNN = ratings.wins_by_client(battles, list("abcd"))
    assert theta_N - theta_N.mean() == pytest.approx(ratings.fit(wins_CKNN[:, :1].sum(axis=0))[0], abs=1e-5)


def talk(clients: int, by_length: bool, seed: int = 0) -> tuple[list[Battle], dict[str, Session]]:
    """Contestant b speaks longer on the whole, both vary. Verdicts follow the length, or the name, with noise."""
    rng = random.Random(seed)
    battles, sessions = [], {}
    for c in range(clients):
        script = short_script(f"c{c}")
        words = {name: rng.randint(5, 25) + (12 if name == "b" else 0) for name in "abc"}
        made = {name: session_of(script, name, "train", " ".join(["word."] * words[name])) for name in "abc"}
        sessions |= {s.id: s for s in made.values()}
        for x, y in combinations("abc", 2):
            longer = words[x] > words[y] if by_length else x < y
            winner: Winner = "A" if longer == (rng.random() < 0.85) else "B"
            plain = battle(f"c{c}", x, y, winner)
            battles.append(plain.model_copy(update={"session_a": made[x].id, "session_b": made[y].id}))
    return battles, sessions


def test_a_win_by_length_is_gone_at_equal_length():
    rates, coefficients = length_control.controlled_win_rates(*talk(24, by_length=True), ["a", "b", "c"])
    raw, equal = (one(rates, model=m, contestant="b") for m in ("nothing (raw)", "length"))
    assert raw["low"] > 0.6 and equal["low"] < 0.5 < equal["high"] and equal["value"] < raw["value"] - 0.1
    assert one(coefficients, model="length", feature="log words a reply")["low"] > 0
    assert {r["model"] for r in rates} == set(length_control.MODELS) and raw["n"] == 24 and raw["battles"] == 72


def test_a_win_by_name_stays_at_equal_length():
    rates, coefficients = length_control.controlled_win_rates(*talk(32, by_length=False), ["a", "b", "c"])
    raw, equal = (one(rates, model=m, contestant="a") for m in ("nothing (raw)", "length"))
    assert abs(raw["value"] - equal["value"]) < 0.1 and equal["low"] > 0.5
    beta = one(coefficients, model="length", feature="log words a reply")
    assert beta["low"] < 0 < beta["high"]
    assert [r["feature"] for r in coefficients] == ["log words a reply"] * 2  # nobody asked or formatted anything


def test_a_win_by_exclamation_marks_is_gone_at_equal_style():
    rng, battles, sessions = random.Random(1), [], {}
    for c in range(32):
        script, loud = short_script(f"c{c}"), {name: rng.randint(0, 4) + 2 * (name == "b") for name in "abc"}
        made = {n: session_of(script, n, "train", "one two three. Four" + "!" * loud[n]) for n in "abc"}
        sessions |= {s.id: s for s in made.values()}
        for x, y in combinations("abc", 2):
            winner: Winner = "A" if (loud[x] > loud[y]) == (rng.random() < 0.85) else "B"
            winner = "tie" if loud[x] == loud[y] else winner
            ids = {"session_a": made[x].id, "session_b": made[y].id}
            battles.append(battle(f"c{c}", x, y, winner).model_copy(update=ids))
    rates, coefficients = length_control.controlled_win_rates(battles, sessions, ["a", "b", "c"])
    raw, length, equal = (one(rates, model=m, contestant="b") for m in length_control.MODELS)
    assert raw["low"] > 0.6 and length["value"] == pytest.approx(raw["value"])  # all speak at one length
    assert equal["low"] < 0.5 < equal["high"]
    assert [r["feature"] for r in coefficients] == ["exclamation marks a reply"] and coefficients[0]["low"] > 0


def test_what_only_contestants_differ_in_is_left_out():
    battles, sessions = talk(8, by_length=True)
    by_name = {name: "Why? " * i for i, name in enumerate("abc")}
    asked = {i: session_of(short_script(s.profile_id), s.therapist.name, "train", by_name[s.therapist.name])
             for i, s in sessions.items()}  # fmt: skip
    rates, coefficients = length_control.controlled_win_rates(battles, asked, ["a", "b", "c"])
    assert coefficients == [] and one(rates, model="length, style", contestant="a")["value"] == pytest.approx(
        one(rates, model="nothing (raw)", contestant="a")["value"]
    )


def test_features_of_a_reply():
    session = session_of(short_script("c"), "a", "train", "Was it so? **Yes**\n- 我很好？")
    found = length_control.features(session)
    assert found == {"log words a reply": pytest.approx(np.log(1 + 7)), "questions a reply": 2,
                     "formatting marks a reply": 3, "words a sentence": pytest.approx(7 / 3),
                     "exclamation marks a reply": 0}  # fmt: skip


# --- the stage -----------------------------------------------------------------------------------


def made_run(
    folder: Path,
    seed: int = 0,
    clients: int = 6,
    says: str = "I hear you.",
    judge: JudgeIdentity = JUDGE,
    noise: float = 0.25,
    **of: Any,
) -> Path:
    """A run directory with a round robin, verdicts by `seed` and `noise`, sessions by `says`; `of` goes into
    ratings.json. Returns the config file."""
    rng, names = random.Random(0), "abcd"
    scripts = [short_script(f"client-{c}") for c in range(clients)]
    texts = {n: " ".join([says] * (2 + i)) + " What else?" * (i % 2) for i, n in enumerate(names)}
    sessions = [session_of(s, n, "train", texts[n] + " Yes." * rng.randint(0, 9)) for s in scripts for n in names]
    by_name = {(s.profile_id, s.therapist.name): s.id for s in sessions}
    battles = []
    for plain in drawn(clients, names, seed, noise):
        client = f"client-{plain.profile_id[1:]}"
        ids = {f"session_{x}": by_name[client, getattr(plain, f"contestant_{x}")] for x in "ab"}
        battles.append(plain.model_copy(update={"profile_id": client, "judge": judge, **ids}))
    records.write(folder / "sessions.jsonl", sessions)
    records.write(folder / "battles.jsonl", battles)
    entered = run.Field(tuple(names), {f"client-{c}": {} for c in range(clients)}, {})
    table = run.leaderboard(entered, list(battles), judge, 0) | {"pairing": "round_robin", "rounds": 3, **of}
    records.write_json(folder / "ratings.json", table)
    config = folder / "analysis.yaml"
    config.write_text(f"run: {folder}\n", encoding="utf-8")
    return config


def test_the_stage_writes_tables_and_figures(tmp_path, capsys):
    served = {"m at http://h/v1": ["m-1", "m-2"], "one at http://h/v1": ["one"]}
    config, other = (
        made_run(tmp_path / "run", served_models=served),
        made_run(tmp_path / "other", seed=1, shown="whole sessions"),
    )
    further = [f"unsliced={other.parent}", f"repeated=[{other.parent}]"]
    assert cli.main(["analysis", str(config), *further]) == 0
    folder = config.parent / "analysis"
    found = records.read_json(folder / "analysis.json")
    assert set(found["not_in_records"]) == {"experts", "before_after", "style"}
    assert {r["shown"] for r in found["tables"]["position_bias"]} == {SLICED, "whole sessions"}
    assert found["ranking"] == list("abcd") and len(found["figures"]) == 9
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in found["figures"])
    designs = {r["design"] for r in found["tables"]["agreement_by_round"]}
    assert designs == {"round_robin", "swiss", "adaptive"}
    for name, rows in found["tables"].items():
        if rows:
            with (folder / f"{name}.csv").open(encoding="utf-8") as f:
                assert len(list(csv.DictReader(f))) == len(rows)
            assert all({"value", "low", "high", "n"} <= row.keys() for row in rows)
    page = (folder / "analysis.html").read_text(encoding="utf-8")
    the_page_says(found, page)
    assert page.count("judged:</strong> m at http://h/v1 was served by m-1, m-2.") == page.count("was served by") == 1
    assert cli.main(["analysis", str(config), *further]) == 0
    assert "done before" in capsys.readouterr().err
    assert cli.main(["analysis", str(config)]) == 0  # another config: made again, nothing can be lost
    fewer = records.read_json(folder / "analysis.json")
    assert {"unsliced", "repetition"} <= set(fewer["not_in_records"]) and not (folder / "repetition.png").exists()


def the_page_says(found: dict, page: str) -> None:
    """All that the tables hold and what is missing; it is one file."""
    values = [float(x) for x in re.findall(r'<data value="([^"]*)"', page)]
    for name, rows in found["tables"].items():
        assert not rows or f"{len(rows)} rows ({name}.csv)" in page, name
        assert {row["value"] for row in rows} <= set(values), name
    assert all(why in html.unescape(page) for why in found["not_in_records"].values())
    assert page.count("data:image/png;base64,") == len(found["figures"])
    assert found["words"] in page and "fake" in page and not re.search(r'(src|href)="(?!data:|#)', page)


def test_names_on_the_page_cannot_be_markup(tmp_path):
    name = "<script>alert(1)</script>"
    found = {
        "judge": {"judge": name, "rubric_version": "1", "n_battles": 1, "n_clients": 1, "tie_rate": 0.5,
                  "failures": {"n": 0, "share": 0.0, "one_order": 0}},
        "ranking": [name],
        "tables": {t: [] for part in analysis_page.PARTS for t in part.tables}
        | {"win_rates": [{"contestant": name, "measure": "overall", "value": 0.5, "low": None, "high": 1, "n": 1}]},
        "not_in_records": {},
        "words": "Please.",
    }  # fmt: skip
    page = analysis_page.compose("run", found, tmp_path, "")
    assert name not in page and html.escape(name) in page and "[−∞, 1.00]" in page and "Overall" in page


def test_what_the_records_do_not_allow_is_said(tmp_path):
    config = made_run(tmp_path)
    battles = [b for b in records.read(tmp_path / "battles.jsonl", Battle) if b.contestant_a < b.contestant_b]
    records.write(tmp_path / "battles.jsonl", battles[:-1])
    assert cli.main(["analysis", str(config)]) == 0
    found = records.read_json(tmp_path / "analysis" / "analysis.json")
    missing = found["not_in_records"]
    assert (
        "no verdicts of experts" in missing["experts"]
        and "not every pair of contestants has a judged match" in missing["round_robin"]
    )
    assert not found["tables"]["position_bias"] and "no match was judged in both" in missing["position_bias"]
    assert not (tmp_path / "analysis" / "position_bias.csv").exists()


def seeded(seed: int, model: str = "m", prompt: str = "p") -> JudgeIdentity:
    return JudgeIdentity(name="j", model=f"{model} at u (seed {seed - seed}, seed {seed})", rubric_version="1",
                         prompt_hash=prompt)  # fmt: skip


def test_the_same_judge_with_another_seed_is_asked_again_and_the_same_seed_is_said(tmp_path):
    config = made_run(tmp_path / "run", judge=seeded(0))
    made_run(tmp_path / "seed1", seed=1, judge=seeded(1))
    made_run(tmp_path / "seed0", judge=seeded(0))
    for other, seeds in (("seed1", 2), ("seed0", 1)):
        assert cli.main(["analysis", str(config), f"repeated=[{tmp_path / other}]"]) == 0
        found = records.read_json(tmp_path / "run" / "analysis" / "analysis.json")
        assert {row["seeds"] for row in found["tables"]["repetition"]} == {seeds}
        assert ("repetition" in found["not_in_records"]) == (seeds == 1)
    assert "asked with the same seed" in found["not_in_records"]["repetition"]


def test_before_and_after_slicing_are_told_apart_and_of_one_model(tmp_path, capsys):
    config = made_run(tmp_path / "run", judge=seeded(0))
    made_run(tmp_path / "sliced", seed=1, judge=seeded(0, prompt="other"))
    assert cli.main(["analysis", str(config), f"unsliced={tmp_path / 'sliced'}"]) == 2
    assert "saw stage slices, those of this run stage slices; expected whole sessions there" in capsys.readouterr().err
    made_run(tmp_path / "other", seed=1, judge=seeded(0, model="n"), shown="whole sessions")
    assert cli.main(["analysis", str(config), f"unsliced={tmp_path / 'other'}"]) == 2
    assert "was judged by n at u (seed 0), this run by m at u (seed 0)" in capsys.readouterr().err
    whole = made_run(tmp_path / "whole", seed=1, judge=seeded(3, prompt="other"), shown="whole sessions")
    assert cli.main(["analysis", str(config), f"unsliced={tmp_path / 'whole'}"]) == 0
    assert cli.main(["analysis", str(whole)]) == 0
    found = records.read_json(tmp_path / "whole" / "analysis" / "analysis.json")
    assert {row["shown"] for row in found["tables"]["position_bias"]} == {"whole sessions"}
    assert "sliced" in found["not_in_records"] and "unsliced" not in found["not_in_records"]


def test_before_and_after_slicing_are_measured_on_the_same_matches(tmp_path):
    config = made_run(tmp_path / "run")
    made_run(tmp_path / "whole", seed=1, shown="whole sessions")
    path = tmp_path / "whole" / "battles.jsonl"
    records.write(path, records.read(path, Battle)[5:])  # two matches and one order of a third: 33 of 36 are left
    for further, expected in (([], {SLICED: 72}), (["unsliced"], {SLICED: 66, "whole sessions": 66})):
        assert cli.main(["analysis", str(config), *(f"{key}={path.parent}" for key in further)]) == 0
        tables = records.read_json(tmp_path / "run" / "analysis" / "analysis.json")["tables"]
        assert {r["shown"]: r["battles"] for r in tables["position_bias"]} == expected
        assert {r["shown"]: 2 * r["battles"] for r in tables["order_consistency"] if r["of"] == "measure"} == expected


def test_what_nobody_disputes_is_said_not_to_be_bounded(tmp_path):
    assert cli.main(["analysis", str(made_run(tmp_path / "run", noise=0.0))]) == 0
    found = records.read_json(tmp_path / "run" / "analysis" / "analysis.json")
    raw = [r for r in found["tables"]["controlled_win_rates"] if r["model"] == "nothing (raw)"]
    assert all(r["high"] - r["low"] < 1e-5 for r in raw)
    missing = found["not_in_records"]
    assert "overall (separable), empathy (separable)" in missing["graph"]
    assert (
        "where all clients agree" in missing["agreement"]
        and "those of a, b, c, d have no width" in missing["agreement"]
    )
    the_page_says(found, (tmp_path / "run" / "analysis" / "analysis.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("ties", ["half", "davidson"])
def test_the_last_round_has_the_runs_own_ratings(ties):
    battles = drawn(5, "abcd")
    _, wins_CKNN = ratings.wins_by_client(battles, list("abcd"))
    ties_CK = ratings.ties_by_client(battles) if ties == "davidson" else None
    own = {r.contestant: r for r in ratings.rate(wins_CKNN, list("abcd"), ties_CK=ties_CK).ratings["overall"]}
    rounds = convergence.rounds_of(battles)
    last = [r for r in convergence.ratings_by_round("round_robin", rounds, "abcd", ties=ties) if r["round"] == 3]
    assert [(r["value"], r["low"], r["high"]) for r in last] == [
        (pytest.approx(own[r["contestant"]].rating, abs=2e-3), pytest.approx(own[r["contestant"]].low, abs=2e-3),
         pytest.approx(own[r["contestant"]].high, abs=2e-3)) for r in last
    ]  # fmt: skip
    assert convergence.agreement_by_round("round_robin", rounds, battles, "abcd", ties=ties)[-1]["value"] == 1


def test_a_round_that_one_client_alone_finished_has_no_ratings_yet():
    battles = [battle("1", "x", "y", "A"), battle("1", "z", "w", "A"), battle("2", "x", "y", "A", 2),
               battle("2", "z", "w", "B", 2)]  # fmt: skip
    rows = convergence.ratings_by_round("swiss", convergence.rounds_of(battles), list("wxyz"))
    assert [(r["round"], r["n"]) for r in rows] == [(2, 2)] * 4


def test_bad_input_is_one_sentence(tmp_path, capsys):
    config = made_run(tmp_path / "run")
    battles = records.read(tmp_path / "run" / "battles.jsonl", Battle)
    assert cli.main(["analysis", str(config), f"repeated=[{tmp_path / 'none'}]"]) == 2
    assert "no such file; the analysis needs it" in capsys.readouterr().err
    for itself in ([tmp_path / "run"], [tmp_path / "none", tmp_path / "other" / ".." / "none"]):
        assert cli.main(["analysis", str(config), f"repeated=[{', '.join(map(str, itself))}]"]) == 2
        assert f"{itself[0]} stands here twice or is the run itself" in capsys.readouterr().err
    elsewhere = made_run(tmp_path / "elsewhere", says="Mm.", shown="whole sessions")
    assert cli.main(["analysis", str(config), f"unsliced={elsewhere.parent}"]) == 2
    assert "expected a run over the same sessions.jsonl" in capsys.readouterr().err
    strict = JudgeIdentity(name="strict", model="fake", rubric_version="2")
    other = [b.model_copy(update={"judge": strict}) for b in battles]
    records.write(elsewhere.parent / "battles.jsonl", other)
    assert cli.main(["analysis", str(config), f"repeated=[{elsewhere.parent}]"]) == 2
    assert "was judged by strict (fake, prompt , rubric 2), this run by fake (fake, " in capsys.readouterr().err
    records.write(tmp_path / "run" / "battles.jsonl", [*battles[:-1], other[-1]])
    assert cli.main(["analysis", str(config)]) == 2
    assert "2 judges (fake fake 1 ; strict fake 2 )" in capsys.readouterr().err
    assert not (tmp_path / "run" / "analysis").exists()
