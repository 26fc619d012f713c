"""Records: written whole, read strictly, resumed after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import Dimension, Failure, Phase, Reward, Turn, TurnRecord, Usage, base, content_hash


def reward(turn: int, value: float = 0.5) -> Reward:
    return Reward(model="m", session="s", turn=turn, dimension=Dimension.CRISIS, value=value)


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with records.Appender(path, Reward) as out:
        out.append(reward(1), reward(2))
    with records.Appender(path, Reward) as out:
        assert set(out.done) == {reward(1).key, reward(2).key}
        with pytest.raises(ValueError, match="already there"):
            out.append(reward(1))
        out.append(reward(3))
    assert records.read(path, Reward) == [reward(1), reward(2), reward(3)]


def test_a_half_written_last_line(tmp_path: Path) -> None:
    """Its owner drops it and goes on; a reader is told, and the file stays as it was."""
    path = tmp_path / "r.jsonl"
    records.write(path, [reward(1), reward(2)])
    torn = path.read_bytes()[:-9]
    path.write_bytes(torn)
    with pytest.raises(UserError, match=r"r\.jsonl, line 2: half-written last line"):
        records.read(path, Reward)
    assert records.peek(path, Reward) == [reward(1)] and records.peek(tmp_path / "none.jsonl", Reward) == []
    assert path.read_bytes() == torn
    with records.Appender(path, Reward) as out:
        assert out.dropped_bytes > 0
        assert list(out.done) == [reward(1).key]
        out.append(reward(2))
    assert records.read(path, Reward) == [reward(1), reward(2)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": "high"}, ["line 2", "value", "'high'"]),
        ({"colour": 1}, ["line 2", "unknown key 'colour'", "permitted", "dimension"]),
        ({"dimension": "charm"}, ["line 2", "dimension", "'charm'", "empathy"]),
        ({"value": 0.9}, ["line 2", "does not match the content"]),
        ({"schema_version": 2}, ["schema_version", "2"]),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, change: dict[str, object], said: list[str]) -> None:
    path = tmp_path / "r.jsonl"
    lines = [records.dumps(reward(1)), json.dumps(json.loads(records.dumps(reward(2))) | change)]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError) as e:
        records.read(path, Reward)
    assert all(word in str(e.value) for word in [*said, "r.jsonl"])


def test_missing_file_and_not_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        records.read(tmp_path / "r.jsonl", Reward)
    (tmp_path / "r.jsonl").write_text("{oops\n")
    with pytest.raises(UserError, match="line 1: not JSON"):
        records.read(tmp_path / "r.jsonl", Reward)


def test_key_is_over_inputs_and_id_over_content_without_usage() -> None:
    turn = Turn(turn=1, phase=Phase.ALLIANCE, dimension=None, client="a", therapist="b")
    one = TurnRecord(session_key="s", turn=turn)
    slow = TurnRecord(session_key="s", turn=turn, usage=Usage(calls=1, seconds=9))
    assert one.id == slow.id and one.key == slow.key
    assert reward(1, 0.1).key == reward(1, 0.2).key
    assert reward(1, 0.1).id != reward(1, 0.2).id


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    records.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(path, {"a": float("nan")})
    assert records.read_json(path) == {"a": 1}


def test_hashes_are_made_once_and_anew_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(value: object) -> str:
        made.append(content_hash(value))
        return made[-1]

    monkeypatch.setattr(base, "content_hash", counted)
    one = Failure(stage="simulate", subject="a", reason="because")
    assert one.id == one.id == one.model_dump()["id"] and one.key == one.key and len(made) == 2
    other = one.model_copy(update={"subject": "b"})
    assert other == Failure(stage="simulate", subject="b", reason="because")  # hashed or not, they are equal
    assert other.id not in made[:2] and other.key not in made[:2] and one.model_copy().id == one.id
    assert Failure.model_validate(json.loads(records.dumps(other))) == other
