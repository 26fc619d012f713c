"""Stage `score`: rewards of a file's rows, each once, also after a kill; and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from psychepass import records
from psychepass.cli import main
from psychepass.schema import Dimension, Message
from psychepass.scoring import ScoreGroup
from reward_model import model as models
from reward_model import score
from reward_model.score import RowRewards
from reward_model.scorer import GroupScorer
from tests.conftest import ROOT
from tests.tiny import tiny_model, tiny_tokenizer

# kills its own process at the n-th tree, as a SIGKILL from outside would
KILLER = """
import os, signal, sys
from psychepass.cli import main
from reward_model.scorer import GroupScorer
score_tree, trees = GroupScorer.score_tree, 0
def counted(*args):
    global trees
    trees += 1
    if trees == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return score_tree(*args)
GroupScorer.score_tree = counted
main(sys.argv[2:])
"""
LINE = {"role": "user", "content": "I can't sleep."}
REPLY = {"role": "assistant", "content": "You lie awake."}
SYSTEM = {"role": "system", "content": "You are a counselor."}
ROWS: list[dict[str, Any]] = [
    {"context": [LINE], "responses": ["You lie awake.", "Go on."], "dimensions": ["crisis"], "note": "kept elsewhere"},
    {"messages": [SYSTEM, LINE, REPLY]},
    {"prompt": [LINE, REPLY, LINE], "completion": [REPLY], "dimension": "memory"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    made = models.from_base(tiny_model(folder), 2, seed=0)
    learnt = (Dimension.MEMORY, Dimension.CRISIS, Dimension.EMPATHY)
    card = models.save(made, tiny_tokenizer(), folder / "reward_model", "tiny", 512, 64, dimensions=learnt)
    models.finish(made, folder / "reward_model", card)
    return folder / "reward_model"


def call(folder: Path, model: Path, rows: list[Any] | None = None) -> list[str]:
    """The command's arguments, over a file of these rows."""
    if rows is not None:
        text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
        (folder / "rows.jsonl").write_text(text)
    config = str(ROOT / "configs" / "score.yaml")
    return ["score", config, f"run={folder / 'run'}", f"model={model}", f"file={folder / 'rows.jsonl'}"]


def read(folder: Path) -> list[RowRewards]:
    return records.read(folder / "run" / "scores.jsonl", RowRewards)


def test_every_form_of_row_gets_the_rewards_of_its_group(tmp_path: Path, model: Path) -> None:
    assert main(call(tmp_path, model, [ROWS[0], "", *ROWS[1:]])) == 0
    found = {r.row: r for r in read(tmp_path)}
    line, reply = Message(**LINE), Message(**REPLY)
    both = (Dimension.EMPATHY, Dimension.ENGAGEMENT)
    asked = {
        1: ScoreGroup(context=(line,), responses=("You lie awake.", "Go on."), dimensions=(Dimension.CRISIS,)),
        3: ScoreGroup(context=(line,), responses=(reply.content,), dimensions=both),
        4: ScoreGroup(context=(line, reply, line), responses=(reply.content,), dimensions=(Dimension.MEMORY,)),
    }
    scorer = GroupScorer.load(model)
    assert set(found) == set(asked), "rows count the file's lines"
    for row, group in asked.items():
        assert found[row].dimensions == group.dimensions and found[row].model == scorer.name
        assert found[row].rewards == tuple(pytest.approx(r, abs=2e-6) for r in scorer.score([group])[0])


def test_dimensions_that_were_never_trained_are_named(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(call(tmp_path, model, ROWS)) == 0
    assert capsys.readouterr().err.count("was never trained on engagement; its rewards there mean nothing") == 1
    assert [r.untrained for r in sorted(read(tmp_path), key=lambda r: r.row)] == [(), (Dimension.ENGAGEMENT,), ()]
    old = tmp_path / "old"  # a model and its scores from before its card said so
    shutil.copytree(model, old)
    card = records.read_json(old / models.CARD)
    assert card.pop("dimensions") == ["empathy", "crisis", "memory"]
    records.write_json(old / models.CARD, card)
    assert main([*call(tmp_path, old), f"run={tmp_path / 'again'}"]) == 0
    assert "never trained" not in capsys.readouterr().err
    out = tmp_path / "again" / "scores.jsonl"
    again = records.read(out, RowRewards)
    assert {r.untrained for r in again} == {None}
    out.write_text(out.read_text().replace(',"untrained":null', ""))
    assert records.read(out, RowRewards) == again


def test_a_second_call_does_nothing_and_a_changed_file_is_refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(call(tmp_path, model, ROWS)) == 0
    before = (tmp_path / "run" / "scores.jsonl").read_bytes()
    assert main(call(tmp_path, model)) == 0 and "done before" in capsys.readouterr().err
    assert main(call(tmp_path, model, ROWS[:2])) == 2 and "ran before with other inputs" in capsys.readouterr().err
    (tmp_path / "run" / "manifests" / "score.json").unlink()  # half of what the error says is to be deleted
    assert main(call(tmp_path, model)) == 2 and "scores.jsonl is there already, and no" in capsys.readouterr().err
    assert (tmp_path / "run" / "scores.jsonl").read_bytes() == before
    (tmp_path / "run" / "scores.jsonl").unlink()
    assert main(call(tmp_path, model)) == 0 and [r.row for r in read(tmp_path)] == [1, 2]


def test_killed_and_called_again_no_row_is_scored_twice(tmp_path: Path, model: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Night {n}."}, REPLY]} for n in range(400)]
    arguments = call(tmp_path, model, rows)
    out = tmp_path / "run" / "scores.jsonl"
    process = subprocess.run([sys.executable, "-c", KILLER, "40", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    with out.open("ab") as f:
        f.write(b'{"row": 400, "gr')  # a line half written
    killed = out.read_bytes()
    first = killed[: killed.rfind(b"\n") + 1]
    assert 3 <= first.count(b"\n") < 400
    command = [sys.executable, "-m", "psychepass.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(first)
    assert sorted(r.row for r in read(tmp_path)) == list(range(1, 401))
    scorer, last = GroupScorer.load(model), read(tmp_path)[-1]
    group = score.group_of(rows[last.row - 1], ["empathy", "engagement"], "")
    assert last.rewards == tuple(pytest.approx(r, abs=2e-6) for r in scorer.score([group])[0])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{nope", "not JSON"),
        (7, "columns none; permitted: context and responses, or messages, or prompt and completion"),
        ({"chosen": [LINE, REPLY]}, "columns chosen; permitted"),
        ({"messages": [LINE]}, "the conversation's last message must be the assistant's"),
        ({"messages": "hello"}, "'hello' is no list of messages"),
        ({"messages": [LINE, LINE, REPLY]}, "context must be user, assistant"),
        ({"context": [LINE], "responses": []}, "responses"),
        ({"context": [LINE], "responses": [None]}, "responses.0"),
        ({"context": [LINE], "responses": ["a"], "dimension": "charm"}, "'charm'"),
        ({"context": [LINE], "responses": ["a " * 200]}, "longer than max_response = 64"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named_before_any_is(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], row: Any, said: str
) -> None:
    assert main(call(tmp_path, model, [ROWS[0], row])) == 2
    error = capsys.readouterr().err
    assert said in error and "rows.jsonl, line 2" in error
    assert not (tmp_path / "run" / "scores.jsonl").exists()
    assert main(call(tmp_path, model, ROWS)) == 0, "a mended file may follow"


def test_a_byte_order_mark_is_read_over_and_bytes_that_are_not_utf_8_are_named(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = call(tmp_path, model)
    row = json.dumps(ROWS[1]).encode()
    (tmp_path / "rows.jsonl").write_bytes(row + b"\r\n" + row.replace(b"awake", b"\xe9veill\xe9") + b"\r\n")
    assert main(arguments) == 2
    assert "rows.jsonl, line 2: not JSON ('utf-8' codec can't decode byte 0xe9" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + row + b"\r\n" + row + b"\r\n")
    assert main(arguments) == 0, "a mended file may follow"
    assert [r.row for r in read(tmp_path)] == [1, 2]


def test_an_empty_file_and_an_unknown_dimension_are_named(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(call(tmp_path, model, [""])) == 2 and "no rows; permitted" in capsys.readouterr().err
    assert main([*call(tmp_path, model), "dimensions=[charm]"]) == 2
    assert "unknown dimension 'charm'; permitted: empathy, discernment" in capsys.readouterr().err
