"""A stage's manifest: done once, refused when its config or inputs changed, finished after a failure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from psychepass import records
from psychepass.config import Config, StageConfig
from psychepass.errors import UserError
from psychepass.run import stage_run


class Speaker(Config):
    name: str
    seed: int = 0


class Sample(StageConfig):
    steps: int = 3
    speakers: tuple[Speaker, ...] = ()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "in.txt"
    path.parent.mkdir()
    path.write_text("one")
    return path


def config(source: Path, **changes: Any) -> Sample:
    return Sample(run=str(source.parent), **changes)


def test_a_stage_that_ended_is_done(source: Path) -> None:
    with stage_run("x", config(source), [source]) as run:
        assert not run.done
        run.note(made=3)
    with stage_run("x", config(source), [source]) as run:
        assert run.done
    manifest = records.read_json(source.parent / "manifests" / "x.json")
    assert manifest["config"] == {"steps": 3, "seed": 0, "speakers": []}
    assert manifest["notes"] == {"made": 3}
    assert list(manifest["inputs"]) == ["in.txt"]
    assert manifest["starts"] == 1 and manifest["ended"] and manifest["versions"]["python"].startswith("3.")


def test_a_stage_that_failed_starts_again(source: Path) -> None:
    with pytest.raises(RuntimeError), stage_run("x", config(source), [source]):
        raise RuntimeError("killed")
    with stage_run("x", config(source), [source]) as run:
        assert not run.done
    assert records.read_json(source.parent / "manifests" / "x.json")["starts"] == 2


def test_changed_config_and_inputs_are_refused_and_named(source: Path) -> None:
    with stage_run("x", config(source), [source]):
        pass
    before = (source.parent / "manifests" / "x.json").read_bytes()
    with pytest.raises(UserError, match=r"steps: was 3, is 4"), stage_run("x", config(source, steps=4), [source]):
        raise AssertionError("must not run")
    source.write_text("two")
    with pytest.raises(UserError, match=r"inputs \(in\.txt: was"), stage_run("x", config(source), [source]):
        raise AssertionError("must not run")
    assert (source.parent / "manifests" / "x.json").read_bytes() == before


def test_inputs_of_one_name_are_told_apart(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [tmp_path / folder / "in.txt" for folder in ("a", "b")]
    for path in others:
        path.parent.mkdir()
        path.write_text("one")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("one")
    inputs = [Path("in.txt"), *others, source]
    with stage_run("x", config(source), inputs):
        pass
    manifest = records.read_json(source.parent / "manifests" / "x.json")
    assert {"in.txt", "a/in.txt", "b/in.txt"} < set(manifest["inputs"]) and len(manifest["inputs"]) == 4
    for path in inputs:
        path.write_text("two")
        with pytest.raises(UserError, match=r"ran before with other inputs"), stage_run("x", config(source), inputs):
            raise AssertionError("must not run")
        path.write_text("one")
    with stage_run("x", config(source), inputs) as run:
        assert run.done


def test_a_missing_input_is_named(source: Path) -> None:
    missing = source.parent / "sessions.jsonl"
    with (
        pytest.raises(UserError, match=r"sessions\.jsonl: stage x needs this file"),
        stage_run("x", config(source), [missing]),
    ):
        raise AssertionError("must not run")


def test_a_stage_runs_once_at_a_time(source: Path) -> None:
    said = rf"x\.lock: stage x is running here already \(process {os.getpid()}\)"
    with stage_run("x", config(source), [source]):
        with pytest.raises(UserError, match=said), stage_run("x", config(source), [source]):
            raise AssertionError("must not run")
        with stage_run("y", config(source), [source]) as other:
            assert not other.done
    with stage_run("x", config(source), [source]) as run:
        assert run.done


def test_a_change_inside_a_list_is_named_by_its_place(source: Path) -> None:
    speakers = tuple(Speaker(name=f"s{i}") for i in range(9))
    with stage_run("x", config(source, speakers=speakers), [source]):
        pass
    other = (*speakers[:8], Speaker(name="s8", seed=4))
    said = r"with other config \(speakers\.8\.seed: was 0, is 4\); use another run directory"
    with pytest.raises(UserError, match=said), stage_run("x", config(source, speakers=other), [source]):
        raise AssertionError("must not run")
    with (
        pytest.raises(UserError, match=r"speakers\.0\.name: was 's0', is None; .*; and 13 more\)"),
        stage_run("x", config(source), [source]),
    ):
        raise AssertionError("must not run")
