"""The benchmark beside human experts: its figures by hand, the judge's features on made-up lines, the real files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks import experts, experts_feedback, unscripted
from tournament.lexicon import load_lexicon

JUDGE = load_lexicon("judge")


def test_order_by_hand() -> None:
    # the reference tells 5 of 6 pairs apart: (0,1) (0,2) (0,3) (1,3) (2,3); the other has (0,1) tied, (0,2) turned
    reference, other = np.array([1.0, 2, 2, 3]), np.array([2.0, 2, 1, 5])
    found = experts.order(reference, other)
    assert found.value == pytest.approx((0.5 + 0 + 1 + 1 + 1) / 5)
    assert found.rest_I[0] == 1 and found.rest_I[3] == pytest.approx(0.25)  # without 0: (1,3) (2,3); without 3: two
    assert experts.order(reference, reference).value == 1 and experts.order(reference, -reference).value == 0
    assert experts.order(reference, np.zeros(4)).value == 0.5  # a feature that never fires tells nothing
    never = experts.figure("x", experts.order(reference, np.zeros(4)))
    assert never.low == never.high == 0.5 and "no interval" in experts.told(never)
    assert experts.order(reference * 10 + 3, other).value == found.value  # within-rater order, not the scale


def test_deleting_a_conversation_is_what_the_shortcut_says() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 6, 20).astype(float), rng.integers(1, 6, 20).astype(float)
    rest = experts.order(a, b).rest_I
    assert rest == pytest.approx([experts.order(np.delete(a, i), np.delete(b, i)).value for i in range(20)])


def test_a_mean_over_sets_by_hand() -> None:
    one = experts.Estimate(0.6, np.array([0.5, 0.7]))
    two = experts.Estimate(0.8, np.array([0.8, 0.8]))
    found = experts.over_sets("x", {"s": [one], "t": [two]})
    assert (found.value, found.n) == (pytest.approx(0.7), 4)
    # set s alone varies: (2 - 1)/2 * (0.05² + 0.05²) = 0.0025, so the error is 0.05, with 2 degrees of freedom
    assert found.high is not None and found.high - found.value == pytest.approx(4.302653 * 0.05)


def test_a_conversation_becomes_replies_with_what_was_said_before() -> None:
    text = "Seeker: I feel low.\nSupporter: Hello.\nSupporter: I hear you,\nreally.\n\nSeeker: Thanks.\nSeeker: Bye."
    lines = unscripted.lines_of(text)
    assert lines == [("client", "I feel low."), ("helper", "Hello."), ("helper", "I hear you,\nreally."),
                     ("client", "Thanks."), ("client", "Bye.")]  # fmt: skip
    (context,) = unscripted.contexts_of([("helper", "Welcome."), *lines])
    assert context.line.text == "I feel low." and context.reply.text == "Hello.\nI hear you,\nreally."
    assert context.lines == () and context.target_words == len(context.reply.words)


def of(client: str, reply: str) -> dict[str, float]:
    return unscripted.last_reply([("client", client), ("helper", reply)], JUDGE)


def test_features_of_made_up_replies() -> None:
    said = "I am so worried about my exam next week, and my sister says I am lazy."
    found = of(
        said, "You are carrying your exam and what your sister says. It makes sense to feel tense about that exam."
    )
    assert found["Empathy"] == 1 and found["reflection"] == 1 and found["validation"] == 1  # "tense", which was unsaid
    assert found["Engagement"] == found["Suggestion"] == found["dismissal"] == 0
    unnamed = of("My exam is next week.", "You have your exam in mind the whole week.")
    assert unnamed["Empathy"] == unnamed["reflection"] == 1  # no affect was named: the reflection is all there is
    asked = of(said, "What is the hardest part of the exam for you?")
    assert asked["open question"] == 1 and asked["Engagement"] == 0.5 and asked["Empathy"] == 0
    dismissed = of(said, "You have your exam and your sister. Calm down, it is not a big deal.")
    assert dismissed["dismissal"] == 1 and dismissed["Empathy"] == 0
    thrice = of(said, "What about the exam? What does your sister say? What do you do about the exam?")
    assert thrice["open question"] == 1 and thrice["Engagement"] == 0


def test_length_is_not_held_against_a_reply_but_repetition_is() -> None:
    asked = "What part of the exam seems hardest to you?"
    more = " Some people dread the hours before it, others the wait for the marks in July."
    assert of("My exam is near.", asked)["open question"] == of("My exam is near.", asked + more)["open question"] == 1
    assert of("My exam is near.", asked + 3 * more)["open question"] == 0  # q: repeated 4-grams


def pair(dialogue: str, area: str, words: tuple[int, int], **of: tuple[float, float]) -> experts_feedback.Pair:
    rewritten, own = ({f: of.get(f, (0.0, 0.0))[k] for f in unscripted.FEATURES} for k in (0, 1))
    return experts_feedback.Pair(dialogue, area, words, dict.fromkeys(experts_feedback.LEXICONS, (rewritten, own)))


def test_feedback_is_read_by_dialogue_and_area(tmp_path: Path) -> None:
    label = {"perfect": False, "badareas": ["Questions"], "alternative": "What keeps you awake?"}
    text = f"### Input:\nSeeker: I lie awake.\nHelper: Go to bed.\n\n### Response:{json.dumps(label)}"
    file = tmp_path / "feedback.json"
    file.write_text(json.dumps([{"text": text, "conv_index": n} for n in range(6)]))
    whole, quick = (experts_feedback.pairs_of(file, quick) for quick in (False, True))
    assert [(p.dialogue, p.area, p.words) for p in whole] == [(f"dialogue-{n}", "Questions", (4, 3)) for n in range(6)]
    assert [p.dialogue for p in quick] == ["dialogue-0", "dialogue-5"]


def test_feedback_by_hand() -> None:
    pairs = [
        pair("d1", "Empathy", (9, 3), Empathy=(1.0, 0.5)),
        pair("d1", "Empathy", (3, 9), Empathy=(0.5, 0.5)),
        pair("d2", "Empathy", (9, 3), Empathy=(0.0, 0.5), Suggestion=(1.0, 0.0), validation=(1.0, 0.0)),
        pair("d2", "Structure", (4, 4), Engagement=(0.04, 0.0)),
    ]
    found = {f.name: f for f in experts_feedback.feedback(pairs)}
    own = found["feedback/Empathy/reference-judge, Empathy"]
    assert (own.value, own.n) == (pytest.approx((1 + 0.5 + 0) / 3), 2)
    assert found["feedback/Empathy/reference-judge, Empathy/ties"].value == pytest.approx(1 / 3)
    assert found["feedback/Empathy/reference-judge, Empathy/where it decides"].value == 0.5
    assert found["feedback/Empathy/reference-judge, overall"].value == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["feedback/Structure/reference-judge, overall"].value == 0.5  # 0.04 is within the margin
    assert found["feedback/all areas/longer"].value == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert not any(name.startswith("feedback/Structure/reference-judge, E") for name in found)
    # over all areas the judge prefers the rewritten one in 2 pairs and ties in 2: 0.75 against the longer reply's 0.625
    assert found["feedback/all areas/reference-judge, overall - longer"].value == pytest.approx(0.75 - 0.625)
    assert found["feedback/all areas/longer/where reference-judge decides"].value == 1


def test_without_the_data_it_says_so_and_ends_well(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("PSYCHEPASS_SHARED", str(tmp_path))
    assert experts.main(["--json", str(tmp_path / "x.json")]) == 0
    assert "nothing measured" in capsys.readouterr().out and not (tmp_path / "x.json").exists()


@pytest.fixture
def folder(shared_dir: Path) -> Path:
    path = shared_dir / "data" / "empathic_judging"
    if not path.is_dir():
        pytest.skip(f"{path} is absent")
    return path


def test_the_real_files_are_read_whole(folder: Path) -> None:
    assert sum(map(len, experts.DIMENSIONS.values())) == 21
    for name in experts.DIMENSIONS:
        ids = experts.ids_of(folder, name, quick=False)
        assert len(ids) == 50
        for scores in experts.scores_of(folder, name, ids).values():
            assert all(np.isfinite(x).all() and len(x) == 50 for x in scores.values()) and len(scores) == 7
        if name in experts.TEXTS:
            assert all(unscripted.contexts_of(t) for t in experts.texts_of(folder, name, ids))


def test_kappas_are_those_that_the_study_published(folder: Path) -> None:
    """Quadratic weights, by two decimals, as its own table has them for pairs of experts."""
    places = {"Lend an Ear": "lend_an_ear", "Perceived Empathy": "perceived_empathy",
              "Empathetic Dialogues": "empatheticdialogues", "EPITOME": "epitome"}  # fmt: skip
    with (folder / "table_kappa.csv").open(encoding="utf-8", newline="") as f:
        published = [r for r in csv.DictReader(f) if r["Annotator Pair"].count("expert") == 2]
    scores = {s: experts.scores_of(folder, s, experts.ids_of(folder, s, quick=False)) for s in places.values()}
    found = []
    for row in published:
        first, second = row["Annotator Pair"].strip("()").replace("'", "").split(", ")
        if "experts" in (first, second):
            continue
        of = scores[places[row["Dataset"]]][row["Dimension"]]
        ours = experts.quadratic_kappa(of[first], of[second])
        found.append(ours is not None and abs(ours - float(row["Weighted Cohen's Kappa"])) < 0.0051)
    assert len(found) == 63 and sum(found) >= 62  # self_oriented of experts 1 and 2: 0.79 here, 0.82 there
