"""Stage `report` on a complete synthetic run: the page says what the files say, and nothing it must not say."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from psychepass import records, report, report_data
from psychepass.cli import main as cli
from psychepass.errors import UserError
from psychepass.schema import Session
from tests import synthetic_run
from tests.conftest import ROOT
from tournament import audit
from tournament.rater_agreement import Item

CONFIG = str(ROOT / "configs" / "report.yaml")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report; tests that change files copy it first."""
    run_dir = synthetic_run.make(tmp_path_factory.mktemp("runs") / "demo")
    report.main(CONFIG, [f"run={run_dir}"])
    return run_dir


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent, tmp_path / "runs")
    return tmp_path / "runs" / made.name


class Reader(HTMLParser):
    """Text, the values of <data>, text inside and outside of closed <details>, links and image sources."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.open_text, self.values, self.targets, self.ids = "", "", [], [], []
        self.folds, self.skipping = [], False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        self.skipping = tag == "style" or (self.skipping and tag != "body")
        if tag == "details":
            self.folds.append("open" in of)
        if tag == "data":
            self.values.append(float(of["value"] or "nan"))
        self.ids += [of["id"]] if "id" in of else []
        self.targets += [v for k in ("href", "src", "srcset", "action", "poster") if (v := of.get(k))]

    def handle_endtag(self, tag: str) -> None:
        if tag == "details":
            self.folds.pop()
        if tag == "style":
            self.skipping = False

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.text += data
            self.open_text += data if all(self.folds) else ""


def page_of(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text(encoding="utf-8")


def summary_of(run_dir: Path) -> dict[str, Any]:
    return records.read_json(run_dir / "heldout" / "summary.json")


def test_the_numbers_of_the_page_are_those_of_the_files(made: Path) -> None:
    page, summary = Reader(page_of(made)), summary_of(made)
    text = " ".join(page.text.split())
    ratings = records.read_json(made / "ratings.json")
    metrics = records.read_json(made / "reward_model" / "metrics.json")
    rows = [summary["overall"], *summary["dimensions"].values()]
    expected = [row[k] for row in rows for k in ("win", "tie", "loss", "score", "p")]
    expected += [r["score"] for t in ("shadow", "base_vs_base") for r in summary[t]["dimensions"].values()]
    expected += [summary["reward"][k] for k in ("before", "after", "difference", "p")]
    expected += [r["rating"] for table in (ratings["overall"], *ratings["dimensions"].values()) for r in table]
    expected += [metrics["accuracy"], *(metrics[k]["value"] for k in ("longer_wins", "which_therapist", "same_family"))]
    expected += [metrics["calibration"][k]["value"] for k in ("ece", "ece_if_calibrated", "overconfidence")]
    expected += [row["value"] for k in ("rank_agreement", "pairs_with") for row in metrics[k].values()]
    expected += [d[side]["value"] for d in summary["drift"].values() for side in ("base", "aligned", "difference")]
    assert [x for x in expected if x not in page.values] == []
    for row in rows:
        ends = f"[{report.number(row['low'], 2, True)}, {report.number(row['high'], 2, True)}]"
        assert f"{report.number(row['score'], 2, True)} {ends}" in text
    assert f"n = {summary['overall']['n']} clients" in text
    assert "no verdict" not in text
    assert "Knowing only which therapist spoke: 63" in text and "Always choosing the longer reply: 58" in text


def test_the_page_names_judge_rubric_failures_openings_and_the_exact_words(made: Path) -> None:
    text = " ".join(Reader(page_of(made)).text.split())
    for judge in records.read_json(made / "judge.json").values():
        assert judge["name"] in text and judge["rubric_version"] in text
    assert "0 of 80 held-out" in text
    assert "has been opened 2 times; this evaluation was opening 2" in text
    assert text.count(report_data.WORDS) >= 2
    assert "One training run; intervals cover clients, not training seeds." in text
    assert "Non-inferior to the base model is not a statement of safety." in text
    assert "shows that training worked, not that therapy improved" in text
    for override in records.read_json(made / "grpo" / "overrides.json"):
        assert override["key"] in text and report.plain(override["here"]) in text


def test_a_warning_of_the_held_out_comparison_is_among_the_limits(copied: Path) -> None:
    records.write_json(copied / "heldout" / "summary.json", summary_of(copied) | {"warnings": ["Not <b>trained</b>."]})
    report.main(CONFIG, [f"run={copied}"])
    limits = page_of(copied).split('<section id="limits">')[1]
    assert "<li><strong>Not &lt;b&gt;trained&lt;/b&gt;.</strong></li>" in limits


def test_llm_judges_are_named_and_so_is_a_judge_that_also_plays(copied: Path) -> None:
    one = {"name": "some-llm", "model": "some-model at http://h/v1", "rubric_version": "ab12", "prompt_hash": "cd34"}
    frozen, ratings = (records.read_json(copied / name) for name in ("judge.json", "ratings.json"))
    records.write_json(copied / "judge.json", frozen | {"panel": one | {"judges": [one]}})
    plays = [{"judge": "some-llm", "contestant": "warm", "same": "family x"}]
    served = {"some-model at http://h/v1": ["m-1", "m-2"], "other at http://h/v1": ["other"]}
    records.write_json(copied / "ratings.json", ratings | {"judge_also_plays": plays, "served_models": served})
    report.main(CONFIG, [f"run={copied}"])
    text = " ".join(Reader(page_of(copied)).text.split())
    assert text.count("More than one model judged:") == 1
    assert "More than one model judged: some-model at http://h/v1 was served by m-1, m-2." in text
    assert "come from some-llm (some-model at http://h/v1, rubric ab12, prompt cd34). A language model" in text
    assert "Judge also plays: some-llm and contestant warm share family x." in text
    assert "Every held-out verdict on this page comes from reference-judge" in text
    assert "some-llm labelled and rewarded (through the reward model); the reference judge measured." in text
    assert "One judge label" not in text and "more than half of these judges" not in text


def test_llm_judges_that_measure_are_named_with_what_failed_and_the_reference_judge_stands_beside(copied: Path) -> None:
    one = {"name": "other-llm", "model": "m at http://h/v1", "rubric_version": "ab12", "prompt_hash": "cd34"}
    path = copied / "heldout" / "summary.json"
    found = records.read_json(path)
    plays = [{"judge": "other-llm", "contestant": "aligned", "same": "family x"}]
    beside = {"llm_judges": one | {"judges": [one, one], "also_plays": plays}, "judge_alone": ["skill"]}
    beside |= {"reference": {k: found[k] for k in ("overall", "dimensions")}, "gaming": []}
    beside |= {"failures": {"n": 4, "share": 0.05, "judgements": 80}}
    beside |= {"client": {"name": "m as client", "lines": {"lines": 96, "off script": 5}}}
    records.write_json(path, found | beside)
    report.main(CONFIG, [f"run={copied}"])
    text = " ".join(Reader(page_of(copied)).text.split())
    assert "comes from other-llm (m at http://h/v1, rubric ab12, prompt cd34); a verdict is that of more than" in text
    assert "Judge also plays: other-llm and aligned share family x." in text
    assert "The verdicts of the tournament come from reference-judge" in text
    assert "The judge that measures did not label the battles." in text and "One judge label" not in text
    assert "The reference judge labelled and rewarded (through the reward model); other-llm measured." in text
    assert "Judgements that failed: 4 of 80 held-out (5 %)" in text.replace("\u202f", " ")
    assert "Shown better by the judge and not by the shadow judge: Skill." in text
    assert "<th>Shadow judge</th><th>Reference judge</th><th>Base against base</th>" in page_of(copied)
    assert "A model, m as client, played the held-out ones from their scripts: 96 lines, of which 5 left" in text


def test_a_model_that_labelled_and_measures_under_another_name_is_named(copied: Path) -> None:
    one, other = ({"name": n, "model": f"{n} at http://h/v1", "rubric_version": "a", "prompt_hash": "c"} for n in "mo")
    frozen, found = (records.read_json(copied / name) for name in ("judge.json", "heldout/summary.json"))
    panel = one | {"name": "panel of m, o", "judges": [one, other]}
    records.write_json(copied / "judge.json", frozen | {"panel": panel})
    ratings = records.read_json(copied / "ratings.json")
    records.write_json(copied / "ratings.json", ratings | {"judge_also_plays": []})
    reference = {k: found[k] for k in ("overall", "dimensions")}
    measures = {"llm_judges": one | {"name": "alone", "judges": [one], "also_plays": []}, "judge_alone": []}
    records.write_json(copied / "heldout" / "summary.json", found | measures | {"reference": reference, "gaming": []})
    report.main(CONFIG, [f"run={copied}"])
    text = " ".join(Reader(page_of(copied)).text.split())
    assert "m at http://h/v1 labelled the battles and measures too: what" in text and "did not label" not in text


def test_crisis_turns_are_folded_and_flagged_replies_withheld_but_counted(made: Path) -> None:
    raw = page_of(made)
    page, summary = Reader(raw), summary_of(made)
    probe, after = synthetic_run.PLAN[6][2], synthetic_run.PLAN[7][2]
    assert probe in page.text and probe not in page.open_text
    assert after in page.text and after not in page.open_text
    assert synthetic_run.PLAN[5][2] in page.open_text
    assert synthetic_run.FLAGGED_REPLY not in raw
    assert "1 reply with a harm flag withheld" in page.text
    flags = summary["gate"]["floor"]["base"]["harm_flags"]
    assert f"{flags['replies']} of {flags['of_replies']}" in page.text
    assert flags["replies"] == 16


def test_the_transcripts_are_the_median_clients(made: Path) -> None:
    summary = summary_of(made)
    sessions = records.read(made / "heldout" / "sessions.jsonl", Session)
    shown = report_data.transcripts(sessions, summary)
    ordered = sorted(summary["clients"], key=lambda c: (summary["clients"][c]["overall"], c))
    assert shown["client"] == ordered[3]
    own = next(s for s in sessions if s.profile_id == ordered[3] and s.therapist.name == "aligned" and s.seed == 1)
    assert [t["replies"]["aligned"] for t in shown["turns"]] == [t.therapist for t in own.turns]
    left = [s for s in sessions if s.id != own.id]  # the first session of one policy failed
    assert shown["seeds"] == {"base": 1, "aligned": 1}
    assert report_data.transcripts(left, summary)["seeds"] == {"base": 2, "aligned": 2}


def test_small_p_values_and_the_agreement_of_orders_are_told_as_they_are(copied: Path) -> None:
    summary, ratings = summary_of(copied), records.read_json(copied / "ratings.json")
    summary["overall"] |= {"p": 0.0001, "n": 40}
    records.write_json(copied / "heldout" / "summary.json", summary)
    for given, told in ((0.812346, "81\u202f% of the matches judged in both"), (None, "no match was judged in both.")):
        records.write_json(copied / "ratings.json", ratings | {"order_consistency": given})
        report.main(CONFIG, [f"run={copied}"])
        page = page_of(copied)
        text = Reader(page).text
        assert told in text and "0.812346" not in text and "None" not in text
        assert "p < 0.001. Won" in " ".join(text.split()) and "p = 0.000" not in text
        assert "p of Overall: drawn sign flips" in text and '<data value="0.0001">' in page


def test_the_page_needs_nothing_from_outside(made: Path) -> None:
    raw, page = page_of(made), Reader(page_of(made))
    assert "<script" not in raw and "@import" not in raw and "url(" not in raw
    assert not re.search(r"https?:", raw)
    assert all(t.startswith(("data:image/svg+xml;base64,", "#")) for t in page.targets)
    links = [t[1:] for t in page.targets if t.startswith("#")]
    assert set(links) <= set(page.ids) and len(page.ids) == len(set(page.ids))
    for source in (t for t in page.targets if t.startswith("data:")):
        svg = base64.b64decode(source.partition(",")[2]).decode()
        assert "<image" not in svg and "<script" not in svg
        assert not re.search(r"(?:href|src)=\"(?!#)", svg)


def test_figures_stand_beside_the_page_as_png(made: Path) -> None:
    figures = {p.name for p in (made / "figures").iterdir()}
    assert {
        "before_after.png",
        "leaderboard.png",
        "rm_accuracy.png",
        "rm_reliability.png",
        "grpo_reward.png",
        "grpo_prob_diff.png",
    } <= figures
    assert all((made / "figures" / f).read_bytes()[:4] == b"\x89PNG" for f in figures)


def test_an_unchanged_report_is_left_and_a_changed_input_makes_it_again(copied: Path) -> None:
    page, before = copied / "report.html", page_of(copied)
    page.write_text("kept")
    report.main(CONFIG, [f"run={copied}"])
    assert page.read_text() == "kept"
    summary = summary_of(copied)
    summary["reward"]["after"] = 3.25
    records.write_json(copied / "heldout" / "summary.json", summary)
    report.main(CONFIG, [f"run={copied}"])
    assert 3.25 in Reader(page_of(copied)).values
    page.unlink()
    report.main(CONFIG, [f"run={copied}"])
    assert page.is_file() and page_of(copied) != before


def test_the_same_files_give_the_same_page(copied: Path) -> None:
    before = page_of(copied)
    (copied / "report.html").unlink()
    report.main(CONFIG, [f"run={copied}"])
    assert page_of(copied) == before


@pytest.mark.parametrize(
    ("file", "stage"),
    [("ratings.json", "tournament"), ("grpo/metrics.jsonl", "grpo"), ("heldout/summary.json", "heldout")],
)
def test_a_missing_file_names_the_stage_to_run(copied: Path, capsys: Any, file: str, stage: str) -> None:
    (copied / file).unlink()
    before = page_of(copied)
    assert cli(["report", CONFIG, f"run={copied}"]) == 2
    said = capsys.readouterr().err
    assert file in said and f"run psychepass {stage} first" in said
    assert page_of(copied) == before


def test_a_stage_that_has_not_ended_is_refused(copied: Path) -> None:
    path = copied / "manifests" / "grpo.json"
    records.write_json(path, records.read_json(path) | {"ended": None})
    with pytest.raises(UserError, match="grpo has not ended"):
        report.main(CONFIG, [f"run={copied}"])


def test_a_broken_line_of_a_log_is_named(copied: Path) -> None:
    path = copied / "grpo" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 21, "rew')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 21: not JSON"):
        report.main(CONFIG, [f"run={copied}"])


def test_what_a_client_or_model_says_is_text_and_never_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_run, "ALIGNED", ["<script>alert(1)</script> <b>bold</b> & more?"])
    run_dir = synthetic_run.make(tmp_path / "runs" / "demo")
    report.main(CONFIG, [f"run={run_dir}"])
    assert "<script" not in page_of(run_dir)
    assert "<script>alert(1)</script> <b>bold</b> & more?" in Reader(page_of(run_dir)).text


@pytest.mark.parametrize(
    ("judge", "shadow", "low", "said"),
    [
        ("better", "better", 0.1, ["was judged better", "agrees", "reward on the same prompts rose"]),
        ("better", "not shown", 0.1, ["was judged better", "consistent with gaming of word lists", "rose"]),
        ("worse", "not shown", -0.5, ["was judged worse", "says: not shown", "not shown to have changed"]),
        ("not shown", "not shown", None, ["not shown to differ", "agrees", "not shown to have changed"]),
    ],
)
def test_the_headline_says_what_the_intervals_bear_out(judge: str, shadow: str, low: Any, said: list[str]) -> None:
    summary = {
        "overall": {"shown": judge},
        "shadow": {"overall": {"shown": shadow}},
        "gaming": ["overall"] if (judge, shadow) == ("better", "not shown") else [],
        "reward": {"low": low, "high": 0.9},
    }
    lines = report_data.headline(summary)
    assert [part in text for part, text in zip(said, lines, strict=False)] == [True] * 3
    assert lines[3].startswith("One judge labelled")


def test_numbers_percents_and_intervals_read_as_they_should() -> None:
    assert report.number(-0.004, 2, True) == "0.00" and report.number(-0.5, 1, True) == "−0.5"
    assert report.number(None, unbounded="∞") == "∞" and report.number(1234.5, 1) == "1,234.5"
    shares = [report.percent(x).replace("\u202f", " ") for x in (0, 0.002, 0.25, 0.999, 1)]
    assert shares == ["0 %", "0.2 %", "25 %", "99.9 %", "100 %"]
    tree = {"n": 9, "a": 0.5, "a_low": 0.4, "a_high": 0.6, "b": {"value": 1, "low": 0, "high": 2, "n": 3}, "c": 7}
    assert report_data.intervals(tree) == {
        "a": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "n_clients": None},
        "b": {"value": 1, "low": 0, "high": 2, "n": 3, "n_clients": None},
    }


def test_the_leaderboard_says_what_its_ratings_bear_out(made: Path) -> None:
    page, ratings = Reader(page_of(made)), records.read_json(made / "ratings.json")
    text = " ".join(page.text.split()).replace("\u202f", " ")
    assert "† No finite maximum without the weak prior: Crisis (separable), Ethics (in 12 % of resamples)." in text
    assert "Crisis †" in text and "Ethics †" in text and "Overall †" not in text
    assert [row["observed"] in page.values for row in ratings["predicted"]] == [True, True]
    assert "60 % to 70 %65.2 %68.8 % [55.0 %, 82.0 %]4815" in text
    assert report.letters(ratings["groups"]["overall"]) == {
        "explorer": "a", "reflector": "a", "adviser": "ab", "smollm2-warm": "b", "smollm2": "bc", "smollm2-seed2": "c",
    }  # fmt: skip
    assert report.letters([["x"]] * 27)["x"].endswith("z 27")


def test_calibration_is_no_accuracy_and_a_run_without_a_tournament_has_no_tau(copied: Path) -> None:
    path = copied / "reward_model" / "metrics.json"
    metrics = records.read_json(path)
    labels = [label for label, _ in report_data.accuracies(metrics)]
    assert len(labels) == 7 + len(metrics["dimensions"]) and not {"Ece", "Smollm2", "Of means"} & set(labels)
    records.write_json(path, metrics | {"rank_agreement": None, "pairs_with": {}})
    report.main(CONFIG, [f"run={copied}"])
    text = Reader(page_of(copied)).text
    assert "Kendall" not in text and "Expected calibration error" in text and "Accuracy on the pairs" not in text


def test_who_was_left_out_of_the_training_is_named(copied: Path) -> None:
    assert "left out of the training" not in Reader(page_of(copied)).text
    path = copied / "reward_model" / "metrics.json"
    metrics = records.read_json(path)
    records.write_json(path, metrics | {"left_out": {"therapist": "adviser", "accuracy": metrics["same_family"]}})
    report.main(CONFIG, [f"run={copied}"])
    assert "except for adviser, left out of the training with its family: 58" in Reader(page_of(copied)).text


def test_accuracies_on_therapists_that_were_left_out_stand_beside_the_others(copied: Path) -> None:
    assert "Trained without it" not in Reader(page_of(copied)).text
    metrics = records.read_json(copied / "reward_model" / "metrics.json")
    for name, row in (("adviser", metrics["longer_wins"] | {"value": 0.123}), ("explorer", None)):
        path = copied / report_data.LEAVE_ONE_OUT.replace("*", name)
        path.parent.mkdir(parents=True)
        records.write_json(path, metrics | {"left_out": {"therapist": name, "accuracy": row}})
    report.main(CONFIG, [f"run={copied}"])  # made again: it rests on more files now
    text = Reader(page_of(copied)).text
    assert "Trained without it" in text and "12\u202f%" in text and "trained anew without the therapist" in text


def test_the_shipped_configs_load(made: Path) -> None:
    from psychepass.config import load

    for path in ("report.yaml", "quickstart/report.yaml"):
        assert load(report.ReportConfig, ROOT / "configs" / path).run.startswith("runs/")
    assert json.loads((made / "manifests" / "report.json").read_text())["ended"]


def test_human_raters_stand_on_the_page_where_an_audit_was_made(copied: Path) -> None:
    assert "Human raters" not in page_of(copied) and "was not compared with human experts" in page_of(copied)
    items = [
        Item("strong-weak", f"c{c}", f"case-{c}", "skill", {"e1": said, "e2": "A", "judge": other})
        for c, (said, other) in enumerate([("A", "A"), ("B", "A"), ("tie", "tie"), ("A", "B")])
    ]
    key = {"judge": records.read_json(copied / "judge.json")["judge"]}
    found = audit.compose(key | {"matches": {"all": 9, "left_out_naming_a_model": 1}}, items)
    records.write_json(copied / "audit" / "audit.json", found)
    report.main(CONFIG, [f"run={copied}"])  # made again, because a file that it rests on has come
    page = Reader(page_of(copied))
    text = " ".join(page.text.split())
    assert "raters" in page.ids and "was not compared with human experts" not in text
    assert "agreement of 2 raters with the judge and one another on 4 items of 4 cases" in text
    kappa = next(
        r for r in found["agreement"] if (r["name"], r["between"], r["measure"]) == ("all", "e1 and judge", "kappa")
    )
    assert kappa["value"] in page.values and f"[{kappa['low']:.2f}, {kappa['high']:.2f}]".replace("-", "−") in text


def test_what_choosing_by_the_reward_model_is_worth_is_shown_where_it_was_measured(made: Path, copied: Path) -> None:
    title = "What choosing by it is worth"
    assert title not in Reader(page_of(made)).text
    held = summary_of(copied)
    row = {"overall": held["overall"], "shadow": {"overall": held["shadow"]["overall"]}}
    row["reward_score"] = {"value": 0.3217, "low": 0.11, "high": 0.53, "n": 6}
    sizes = {"clients": 6, "prompts": 72, "prompts_left_out": 2, "samples": 9, "draws": 16}
    records.write_json(
        copied / "best_of_n" / "summary.json", {"gain": {"8": row}, "policy": {"name": "smollm2"}} | sizes
    )
    report.main(CONFIG, [f"run={copied}"])
    page = Reader(page_of(copied))
    assert title in page.text and "each of 72 turns of 6 test clients 9 times (2 turns left out" in page.text
    assert page.values.count(0.3217) == 1
    assert (
        page.values.count(held["overall"]["score"]) == Reader(page_of(made)).values.count(held["overall"]["score"]) + 1
    )
