"""The adapter of feedback_esconv: a labelled turn becomes pairs (made-up rows), its figures by hand, its counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from psychepass import records
from psychepass.schema import Dimension
from reward_model.data import Ask
from tests.benchmarks import feedback_esconv as adapter
from training.imported import checked_rows, records_of


def row(said: str, dialogue: int = 3, **label: Any) -> dict[str, Any]:
    text = (
        f"An instruction.\n\n### Instruction:\nGive feedback.\n\n### Input:\n{said}\n\n### Response:{json.dumps(label)}"
    )
    return {"text": text, "conv_index": dialogue, "helper_index": 0}


def test_a_turn_is_a_pair_for_each_area_it_was_bad_in() -> None:
    said = "Helper: Hello.\nSeeker: I feel\nso tired.\nHelper: Try a hobby."
    bad = row(said, perfect=False, badareas=["Validation", "Slang", "Empathy", "Empathy"], alternative="That is hard. ")
    found = list(adapter.conversational(bad))
    assert [r["dimension"] for r in found] == ["trauma", "empathy"]
    assert found[0]["client"] == "dialogue-3"
    assert [m["content"] for m in found[0]["prompt"]] == ["", "Hello.", "I feel\nso tired."]
    assert found[0]["chosen"] == [{"role": "assistant", "content": "That is hard."}]
    assert found[0]["rejected"] == [{"role": "assistant", "content": "Try a hobby."}]
    assert list(adapter.conversational(row(said, perfect=True, goodareas=["Empathy"]))) == []
    same = row(said, perfect=False, badareas=["Empathy"], alternative="Try a hobby.")
    assert list(adapter.conversational(same)) == []


def test_the_wrong_area_is_another_of_the_eight() -> None:
    areas = list(adapter.AREAS.values())
    assert len(set(areas)) == 8 and {adapter.shuffled(d) for d in areas} == set(areas)
    assert all(adapter.shuffled(d) is not d for d in areas)


def test_figures_by_hand() -> None:
    """Dialogue 1: two pairs, of which the model ranks one; dialogue 2: one pair, ranked. The rewritten one is longer
    in one pair of the first dialogue, shorter in the other, and of the same length in the second."""
    turns = [
        ("Seeker: a\nHelper: x y z", 1, "one two three four"),
        ("Seeker: b\nHelper: much too long for it", 1, "short"),
        ("Seeker: c\nHelper: four more words here", 2, "also four words here"),
    ]
    made = [
        r
        for said, dialogue, better in turns
        for r in adapter.conversational(row(said, dialogue, badareas=["Empathy"], alternative=better))
    ]
    pairs, of = records_of(checked_rows(made, "f", "empathy"), "f", {"dialogue-1", "dialogue-2"})
    sessions = {s.id: s for s in of}
    ranked = {pairs[0].chosen.session: 1.0, pairs[1].chosen.session: -1.0, pairs[2].chosen.session: 1.0}
    rewards = {
        (s, Ask(1, d)): ranked.get(s, 0.0) if d is Dimension.EMPATHY else 0.0
        for s in sessions
        for d in (Dimension.EMPATHY, adapter.shuffled(Dimension.EMPATHY))
    }
    found = {r["name"]: r for r in adapter.figures(pairs, sessions, rewards)}
    assert found["all: accuracy"]["value"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["all, pairs alike: accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["all: longer in words"]["value"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert found["all: shuffled areas"]["value"] == 0.5
    assert found["all: accuracy - longer in words"]["value"] == pytest.approx(0.25)
    assert (found["same length: accuracy"]["value"], found["same length: accuracy"]["n"]) == (1.0, 1)
    assert found["Empathy: accuracy"]["n"] == 3 and "Questions: accuracy" not in found


def test_a_work_folder_in_the_project_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        adapter.arguments(["--work", str(adapter.ROOT / "runs")])
    assert "lies in the project" in capsys.readouterr().err


def test_without_the_data_it_says_so_and_ends_well(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("PSYCHEPASS_SHARED", str(tmp_path))
    assert adapter.main([]) == 0
    assert "is absent" in capsys.readouterr().out


def test_the_real_file_is_read_whole(shared_dir: Path) -> None:
    file = shared_dir / "data" / adapter.NAME / adapter.FILE
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    made = [r for turn in records.read_json(file) for r in adapter.conversational(turn)]
    rows = checked_rows(made, adapter.NAME, "empathy")
    assert len(rows) == 2145 and len({r.client for r in rows}) == 150
    assert {r.dimension for r in rows} == set(adapter.AREAS.values())
