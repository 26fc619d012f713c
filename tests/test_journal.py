"""The journal of battles and failures: each file is read once, and synced when the battles are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psychepass import records
from psychepass.schema import Failure, JudgeIdentity
from tournament.journal import Journal

JUDGE = JudgeIdentity(name="judge", model="m", rubric_version="1", prompt_hash="p")
N = 40


def failed(i: int) -> Failure:
    return Failure(stage="tournament", subject=f"a{i} b{i}", reason="no readable judgement")


def test_failures_are_read_once_and_synced_with_the_battles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    synced: list[str] = []
    open_, sync = records.Appender.__init__, os.fsync

    def counted(self: records.Appender, path: Path, model: type) -> None:
        opened.append(path)
        open_(self, path, model)

    def synced_file(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        sync(fd)

    monkeypatch.setattr(records.Appender, "__init__", counted)
    monkeypatch.setattr(os, "fsync", synced_file)
    with Journal(tmp_path, JUDGE) as journal:
        assert not (tmp_path / "failures.jsonl").exists()  # none without a failure
        for i in range(N):
            journal.append([failed(i)], sync=False)
        assert opened.count(tmp_path / "failures.jsonl") == 1 and not synced
        journal.append([failed(0), failed(N)], sync=False)  # the first is there already
        journal.sync()
        assert sorted(synced) == ["battles.jsonl", "failures.jsonl"]
    with Journal(tmp_path, JUDGE) as journal:
        assert len(journal.failures()) == N + 1
        journal.append([failed(N + 1)])
    assert len(records.read(tmp_path / "failures.jsonl", Failure)) == N + 2
