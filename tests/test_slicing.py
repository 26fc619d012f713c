"""Stage slices of two sessions as one text."""

from __future__ import annotations

import re

import pytest

from psychepass.schema import Phase
from tests.handmade import session_of, short_script
from tournament.slicing import present, stage_slices

SCRIPT = short_script("client-1")
ONE = session_of(SCRIPT, "contestant-one", "train", lambda t: f"one answers {t.turn}")
TWO = session_of(SCRIPT, "contestant-two", "train", lambda t: f"two answers {t.turn}")


def test_stages_alternate():
    titles = re.findall(r"=== Therapist ([AB]), stage (\d)", present(ONE, TWO))
    assert [a + n for a, n in titles] == ["A1", "B1", "B2", "A2", "A3", "B3", "B4", "A4", "A5", "B5"]


def test_whole_sessions_stand_one_after_the_other():
    titles = re.findall(r"=== Therapist ([AB]), stage (\d)", text := present(ONE, TWO, sliced=False))
    assert [a + n for a, n in titles] == ["A1", "A2", "A3", "A4", "A5", "B1", "B2", "B3", "B4", "B5"]
    assert sorted(text.split("\n\n")) == sorted(present(ONE, TWO).split("\n\n")), "the same blocks"


def test_an_empty_turn_joins_the_phase_before():
    slices = stage_slices(ONE)
    assert [t.turn for t in slices[Phase.PATTERN]] == [3, 4]  # 4 is the empty turn
    assert [t.turn for turns in slices.values() for t in turns] == list(range(1, 13))


def test_every_turn_is_shown_once_for_each():
    text = present(ONE, TWO)
    for name, label in (("one", "A"), ("two", "B")):
        found = re.findall(rf"Therapist {label}: {name} answers (\d+)$", text, re.MULTILINE)
        assert [int(n) for n in found] == list(range(1, 13))


def test_titles_name_the_probed_dimensions_and_turns_are_marked():
    text = present(ONE, TWO)
    assert "=== Therapist B, stage 3 of 5: working on the conflict | probes: Trauma, Crisis, Ethics ===" in text
    assert "Turn 6 [probes Crisis]\nClient: Some nights" in text
    assert "Turn 7\nClient: I have not said" in text


def test_contestants_are_anonymous_and_swap_cleanly():
    text, swapped = present(ONE, TWO), present(TWO, ONE)
    assert "contestant" not in text
    assert swapped.count("Therapist A: two answers") == 12
    assert len(text) == len(swapped)


def test_sessions_of_two_clients_are_refused():
    other = session_of(short_script("client-2"), "contestant-two", "train", "hello")
    with pytest.raises(ValueError, match="different scripts"):
        present(ONE, other)


def test_a_session_cut_short_is_refused():
    cut = TWO.model_copy(update={"turns": TWO.turns[:-1]})
    with pytest.raises(ValueError, match="12 and 11 turns"):
        present(ONE, cut)
