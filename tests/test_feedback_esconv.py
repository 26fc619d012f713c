"""feedback_esconv: a labelled turn becomes pairs (made-up rows), its figures by hand, its counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from psychepass import records
from psychepass.cli import main as cli
from psychepass.schema import Dimension, PreferencePair
from reward_model.data import Ask
from tests.benchmarks import feedback_esconv as benchmark
from training.feedback_esconv import AREAS, conversational
from training.imported import checked_rows, records_of


def row(said: str, dialogue: int = 3, **label: Any) -> dict[str, Any]:
    text = (
        f"An instruction.\n\n### Instruction:\nGive feedback.\n\n### Input:\n{said}\n\n### Response:{json.dumps(label)}"
    )
    return {"text": text, "conv_index": dialogue, "helper_index": 0}


def test_a_turn_is_a_pair_for_each_area_it_was_bad_in() -> None:
    said = "Helper: Hello.\nSeeker: I feel\nso tired.\nHelper: Try a hobby."
    bad = row(said, perfect=False, badareas=["Validation", "Slang", "Empathy", "Empathy"], alternative="That is hard. ")
    found = conversational([bad], "f")
    assert [r["dimension"] for r in found] == ["trauma", "empathy"]
    assert found[0]["client"] == "dialogue-3"
    assert [m["content"] for m in found[0]["prompt"]] == ["", "Hello.", "I feel\nso tired."]
    assert found[0]["chosen"] == [{"role": "assistant", "content": "That is hard."}]
    assert found[0]["rejected"] == [{"role": "assistant", "content": "Try a hobby."}]
    assert conversational([row(said, perfect=True, goodareas=["Empathy"])], "f") == []
    same = row(said, perfect=False, badareas=["Empathy"], alternative="Try a hobby.")
    assert conversational([same], "f") == []


def test_the_wrong_area_is_another_of_the_eight() -> None:
    areas = list(AREAS.values())
    assert len(set(areas)) == 8 and {benchmark.shuffled(d) for d in areas} == set(areas)
    assert all(benchmark.shuffled(d) is not d for d in areas)


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
        for r in conversational([row(said, dialogue, badareas=["Empathy"], alternative=better)], "f")
    ]
    pairs, of = records_of(checked_rows(made, "f", "empathy"), "f", {"dialogue-1", "dialogue-2"})
    sessions = {s.id: s for s in of}
    ranked = {pairs[0].chosen.session: 1.0, pairs[1].chosen.session: -1.0, pairs[2].chosen.session: 1.0}
    rewards = {
        (s, Ask(1, d)): ranked.get(s, 0.0) if d is Dimension.EMPATHY else 0.0
        for s in sessions
        for d in (Dimension.EMPATHY, benchmark.shuffled(Dimension.EMPATHY))
    }
    found = {r["name"]: r for r in benchmark.figures(pairs, sessions, rewards)}
    assert found["all: accuracy"]["value"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["all, pairs alike: accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["all: longer in words"]["value"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert found["all: shuffled areas"]["value"] == 0.5
    assert found["all: accuracy - longer in words"]["value"] == pytest.approx(0.25)
    assert (found["same length: accuracy"]["value"], found["same length: accuracy"]["n"]) == (1.0, 1)
    assert found["Empathy: accuracy"]["n"] == 3 and "Questions: accuracy" not in found


def test_a_work_folder_in_the_project_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        benchmark.arguments(["--work", str(benchmark.ROOT / "runs")])
    assert "lies in the project" in capsys.readouterr().err


def test_without_the_data_it_says_so_and_ends_well(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("PSYCHEPASS_SHARED", str(tmp_path))
    assert benchmark.main([]) == 0
    assert "is absent" in capsys.readouterr().out


def test_the_real_file_is_read_whole(shared_dir: Path) -> None:
    file = shared_dir / "data" / benchmark.NAME / benchmark.FILE
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    rows = checked_rows(conversational(records.read_json(file), benchmark.NAME), benchmark.NAME, "empathy")
    assert len(rows) == 2145 and len({r.client for r in rows}) == 150
    assert {r.dimension for r in rows} == set(AREAS.values())


BAD = {"perfect": False, "badareas": ["Empathy", "Questions"], "alternative": "That sounds hard."}


def imported(tmp_path: Path, *rows: dict[str, Any]) -> int:
    file = tmp_path / "feedback.json"
    file.write_text(json.dumps(rows))
    config = {"run": str(tmp_path / "run"), "seed": 0, "file": str(file), "dimension": "empathy", "test_share": 0.5}
    (tmp_path / "import.yaml").write_text(json.dumps(config))
    return cli(["import-pairs", str(tmp_path / "import.yaml")])


def test_the_stage_knows_the_file_by_its_columns(tmp_path: Path) -> None:
    rows = [row(f"Seeker: I am tired, {n}\nHelper: Try a hobby.", n, **BAD) for n in range(4)]
    assert imported(tmp_path, *rows) == 0
    pairs = list(records.read(tmp_path / "run" / "pairs.jsonl", PreferencePair))
    assert len(pairs) == 8 and {p.dimension.value for p in pairs} == {"empathy", "engagement"}
    assert {p.profile_id for p in pairs if p.split == "test"} < {f"dialogue-{n}" for n in range(4)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("### Input:\nHelper: a", "no `### Response:`"),
        ("### Input:\nSeeker: a\n### Response:{not json", "JSONDecodeError"),
        ('### Input:\nSeeker: a\n### Response:{"alternative": "b", "badareas": []}', "does not end with the helper"),
        ('### Input:\nHelper: a\n### Response:{"alternative": "b"}', "badareas"),
    ],
)
def test_a_row_of_another_shape_is_one_clear_error(text: str, said: str, tmp_path: Path, capsys: Any) -> None:
    good = row("Seeker: I am tired\nHelper: Try a hobby.", 1, **BAD)
    assert imported(tmp_path, good, good | {"text": text}) == 2
    message = capsys.readouterr().err
    assert "feedback.json, row 2: not as feedback_esconv writes it" in message and said in message
