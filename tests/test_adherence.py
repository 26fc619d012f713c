"""Which lines follow their script, by hand; and the scripts' own lines all do."""

from __future__ import annotations

import pytest

from psychepass.config import load
from psychepass.schema import ScriptTurn
from psychepass.splits import Splits
from rollout_env.adherence import KINDS, TRIGGER_SHARE, content, most_words, trigger_share, violations
from rollout_env.client import _directions
from rollout_env.passive import minimal_lines
from rollout_env.profiles import load_profiles
from rollout_env.script import build_script
from rollout_env.script_lint import spoken_words
from tests.conftest import ROOT

CHAIR = "My father died in spring, and I never told him about the letter in the drawer."
LETTER = "我父亲春天走了，抽屉里那封信我一直没有告诉他。"


def turn(trigger: str = CHAIR, **evaluator: object) -> ScriptTurn:
    client = {"theme": "t", "emotion": "grief", "trigger": trigger}
    return ScriptTurn.model_validate(
        {"turn": 1, "script_turn": 1, "phase": 3, "client": client, "evaluator": evaluator}
    )


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        (CHAIR, ()),
        ("Dad's gone, he died this spring. There's a letter in a drawer that I never told my father about.", ()),
        ("I can’t stop thinking of that letter in the drawer. My father died, it was spring.", ()),
        ("I feel sad about everything these days.", ("off trigger",)),
        ("*looks down* " + CHAIR, ("stage direction",)),
        (f"[quietly] {CHAIR}", ("stage direction",)),
        (f"Ada: {CHAIR}", ("role label",)),
        (f"Ada Ng: {CHAIR}", ("role label",)),
        (f"Client: {CHAIR}", ("role label",)),
        (f"{CHAIR} Thank you for sharing.", ("helper's words",)),
        ("As an AI language model, I cannot feel.", ("off trigger", "helper's words")),
        ("I understand how you feel. Have you considered a support group?", ("off trigger", "helper's words")),
        (f"{CHAIR} " + "and so on " * 30, ("too long",)),
        (f"{CHAIR} I have pills.", ("method detail",)),
        ("  ", ("unreadable",)),
    ],
)
def test_an_english_line(line: str, kinds: tuple[str, ...]) -> None:
    assert violations(line, turn(), "Ada Ng", minimal=False) == kinds


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        (LETTER, ()),
        ("春天的时候父亲去世了。有封信放在抽屉里，我从来没告诉过他。", ()),
        ("最近总是睡不着，工作也没有力气。", ("off trigger",)),
        (f"（低头）{LETTER}", ("stage direction",)),
        (f"来访者：{LETTER}", ("role label",)),
        ("听起来你很难过，我能理解你的感受，你可以试试写下来。", ("off trigger", "helper's words")),
        ("作为一名心理咨询师，我建议你休息。", ("off trigger", "helper's words")),
        (LETTER + "就这样一直想着" * 30, ("too long",)),
    ],
)
def test_a_chinese_line(line: str, kinds: tuple[str, ...]) -> None:
    assert violations(line, turn(LETTER), "李华", minimal=False) == kinds


def test_a_line_without_a_subject_and_beside_a_risk() -> None:
    assert violations("I suppose.", turn("Mm."), "Ada", minimal=True) == ()
    assert violations("What now?", turn("Mm."), "Ada", minimal=True) == ("not minimal",)
    assert violations("接下来呢？", turn("嗯。"), "李华", minimal=True) == ("not minimal",)
    assert violations("word " * 13, turn("Mm."), "Ada", minimal=True) == ("not minimal",)
    at_risk = turn("Some nights I don't see the point of going on.", dimension="crisis")
    assert violations("Some nights I see no point in going on, not tonight.", at_risk, "Ada", False) == (
        "crisis detail",
    )
    assert violations(CHAIR, turn(), "Ada", False, cut_off=True) == ("too long",)
    for line in ("no point in going on; there is the gun", "no point in going on; I held the knife"):
        assert violations(f"Some nights I see {line}.", at_risk, "Ada", False) == ("crisis detail", "method detail")
    assert violations(f"{CHAIR} I had a rope in the boat.", turn(), "Ada", False) == ()


@pytest.mark.parametrize(
    "words",
    [
        *("I think of cutting myself.", "He hanged himself.", "She jumped off.", "I would jump in front of it."),
        *("I thought of drowning myself.", "There was bleach.", "割手腕", "跳轨"),
    ],
)
def test_a_means_of_harm_is_withheld_in_all_its_forms(words: str) -> None:
    assert "method detail" in violations(f"{CHAIR} {words}", turn(), "Ada", False)


def test_what_only_sounds_like_one_is_not() -> None:
    for words in ("I cut myself off from them.", "He cuts himself short.", "He died by suicide.", "She jumped up."):
        assert violations(f"{CHAIR} {words}", turn(), "Ada", False) == ()


def test_a_young_clients_romantic_theme_is_withheld_and_an_adults_is_not() -> None:
    line = f"{CHAIR} My girlfriend knows."
    assert violations(line, turn(), "Ada", False, young=True) == ("romantic theme",)
    assert violations(line, turn(), "Ada", False) == ()


def test_the_share_by_hand() -> None:
    assert content("I never told my fathers about the letters") == {"told", "father", "letter"}
    assert trigger_share("He told his father.", "I never told my father about the letter") == pytest.approx(2 / 3)
    assert trigger_share("anything", "Well, so what?") == 1.0  # nothing to be said
    assert trigger_share("信在抽屉里", "信在抽屉，不在桌") == pytest.approx(3 / 4)
    assert most_words(turn()) == 60 and most_words(turn("word " * 40)) == 80
    assert spoken_words("one two") == 2 and spoken_words("春天走了") == 3 and spoken_words("我有 one letter") == 4


def test_the_scripts_own_lines_follow_their_scripts_and_those_of_other_turns_hardly_ever_do() -> None:
    split_of = load(Splits, ROOT / "configs" / "splits.yaml").of()
    pairs = near = 0
    for i, profile in load_profiles().items():
        script = build_script(profile, "full")
        said = [t for t in script.turns if t.script_turn]
        assert not [v for t in script.turns if (v := violations(t.client.trigger, t, profile.name, t not in said))]
        if split_of[i] != "heldout":
            lines = [content(t.client.trigger) for t in said]
            shares = [len(a & b) / len(a) for a in lines for b in lines if a is not b and a]
            pairs, near = pairs + len(shares), near + sum(x >= TRIGGER_SHARE for x in shares)
    assert pairs > 37_000 and near <= 24


def test_minimal_lines_are_short_and_enough_and_every_kind_has_words() -> None:
    for lines in minimal_lines().values():
        assert len(set(lines)) == len(lines) == 36
        assert all(spoken_words(x) <= 8 and "?" not in x and "？" not in x for x in lines)
    assert set(_directions()["faults"]) == set(KINDS)
