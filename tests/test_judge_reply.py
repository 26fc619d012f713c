"""What a judge's reply says: read strictly, and nothing that the text does not hold."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from psychepass.schema import Dimension
from tests.benchmarks import judge_replies as benchmark
from tests.benchmarks.judge_replies import REPLIES, Read, careless, lenient, strict, wrong
from tests.judge_replies import KEYS, holds, text_of, valid
from tournament.judge_reply import KEYS as ASKED
from tournament.judge_reply import NoVerdict, output_format, read_reply


def test_ten_thousand_mutated_replies_give_no_verdict_that_the_text_does_not_hold() -> None:
    invented, overlooked, accepted = wrong(strict)
    assert not invented and not overlooked
    # the mutations reach both sides: some keep a verdict, and most do not
    assert REPLIES / 10 < accepted.total() < REPLIES / 2
    assert {"swapped_values", "other_winner", "same_said_otherwise", "fence"} <= set(accepted)
    assert not set(accepted) & {"cut", "prose", "renamed_key", "missing_or_extra", "duplicated_key", "two_objects"}


@pytest.mark.parametrize(("control", "kinds"), [(careless, 1), (lenient, 8)])
def test_readers_that_are_less_strict_are_found_out(control: Callable[[str], Read], kinds: int) -> None:
    invented, _, _ = wrong(control)
    assert len(invented) >= kinds and invented["duplicated_key"] > 100


def test_the_figures_of_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--quick", "--json", str(tmp_path / "f.json")]) == 0
    figures = {f["name"]: f for f in json.loads((tmp_path / "f.json").read_text())}
    assert figures["strict reader/invented"]["value"] == 0 and figures["strict reader/invented"]["n"] == 1_000
    assert figures["lenient reader/invented"]["low"] > 0.1 and "lenient reader/read" in capsys.readouterr().out


def test_the_oracle_by_hand() -> None:
    said = {key: {"winner": "A", "reason": "because"} for key in KEYS}
    assert holds(json.dumps(said)) == dict.fromkeys(KEYS, ("A", "because"))
    assert holds("```json\n" + json.dumps(said) + "\n```") is not None
    assert holds(json.dumps(said) + ".") is None and holds(json.dumps(said)[:-1]) is None
    assert holds(json.dumps({**said, "empathy": {"winner": "a", "reason": "because"}})) is None


def test_valid_replies_are_read_whole() -> None:
    rng = random.Random(1)
    for _ in range(200):
        tree = valid(rng)
        found = read_reply(text_of(tree, rng))
        assert {k: (v.winner, v.reason) for k, v in found.items()} == {k: tuple(v.values()) for k, v in tree.items()}


def test_the_keys_are_the_dimensions_asked_and_overall() -> None:
    assert set(ASKED) == {d.value for d in Dimension} - {"diversity"} | {"overall"} and set(ASKED) == set(KEYS)
    assert all(f'"{key}": {{"reason"' in output_format() for key in ASKED)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.replace('"skill"', '"Skill"'), 'the object has the unknown key "Skill"; permitted: empathy, '),
        (lambda t: t.replace('"skill"', '"crisis"'), 'the key "crisis" stands twice in one object'),
        (lambda t: "{}", "the object lacks empathy, discernment, "),
        (lambda t: t.replace('"A"', '"А"', 1), 'is "\\u0410"; permitted: "A", "B", "tie"'),
        (lambda t: t.replace('"because"', '" "', 1), 'the reason of "empathy" is " "; expected a text'),
        (lambda t: t.replace('"because"', '"\\ud800"', 1), "half of a character"),
        (lambda t: t.replace('"A"', "NaN", 1), "NaN is not JSON"),
        (lambda t: "So: " + t, "it is not one JSON object and nothing else (Expecting value"),
        (lambda t: t[:200], "it is not one JSON object and nothing else ("),
        (lambda t: "[" * 100_000, "nested too deeply"),
        (lambda t: f"[{t}]", "it is not a JSON object but a list"),
    ],
)
def test_the_judge_is_told_what_was_wrong(change: Callable[[str], str], told: str) -> None:
    text = json.dumps({key: {"winner": "A", "reason": "because"} for key in ASKED})
    with pytest.raises(NoVerdict) as e:
        read_reply(change(text))
    assert told in str(e.value) and len(str(e.value)) < 300
