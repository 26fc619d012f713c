"""The whole loop through the command line, with a tiny random Qwen3 in place of every model.

Each stage is called as launch/quickstart.sh calls it; the configs are the quickstart's, with the model, its
sizes and the clients replaced. GRPO runs on two FSDP2 workers. What the values are is not the point here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psychepass import records
from psychepass.schema import Battle, PreferencePair, Session
from tests.conftest import ROOT
from tests.tiny import tiny_model

pytestmark = pytest.mark.timeout(7200)  # the first test is also the one that waits for the whole loop
CONTESTANTS = "smollm2 smollm2-seed2 reflector explorer"
SCORER_S = 1500  # it starts beside the stages, on a machine that may be busy
SPLITS = {"train": 2, "test": 2, "dev": 2, "heldout": 2}


class Loop:
    """A run directory and its stages' configs."""

    def __init__(self, folder: Path):
        self.run = folder / "run"
        self.model = tiny_model(folder)
        self.configs = folder / "configs"
        self.configs.mkdir()
        import yaml

        chosen = yaml.safe_load((ROOT / "configs" / "splits.yaml").read_text())
        splits = self.configs / "splits.yaml"
        splits.write_text(yaml.safe_dump({name: chosen[name][:n] for name, n in SPLITS.items()}))
        local = {"kind": "local", "family": "tiny", "weights": str(self.model), "prompt": "paper"}
        base = {**local, "name": "smollm2", "seed": 1}
        rules = [{"name": n, "kind": "rules", "family": n, "rules": n} for n in ("reflector", "explorer")]
        everyone = CONTESTANTS.split()
        self.values: dict[str, dict[str, Any]] = {
            "simulate": {
                "splits": str(splits),
                "sampling": {"max_tokens": 12},
                "therapists": [base, {**base, "name": "smollm2-seed2", "seed": 2}, *rules],
                "meets": {"train": everyone, "test": everyone, "dev": everyone[:2]},
            },
            "data": {"model": str(self.model), "max_prompt_tokens": 256},
            "rm": {"base": str(self.model), "layers": 2, "train_layers": 1, "epochs": 1},
            "grpo": {
                "model": str(self.model),
                "workers": 2,
                "batch_size": 2,
                "responses": 2,
                "steps": 2,
                "lora": None,
                "max_response_tokens": 12,
                "tokens_per_worker": 512,
                "validate_every": 2,
                "validation_prompts": 2,
                "save_every": 1,
                "scorer_timeout_s": SCORER_S,
            },
            "best-of-n": {"policy": base, "n": [1, 2], "draws": 2, "scorer_timeout_s": SCORER_S},
            "heldout": {
                "splits": str(splits),
                "sampling": {"max_tokens": 12},
                "base": base,
                "aligned": {**base, "name": "aligned", "weights": "policy"},
                "prompts": 2,
                "samples": 2,
                "scorer_timeout_s": SCORER_S,
            },
        }

    def command(self, stage: str) -> list[str]:
        path = self.configs / f"{stage}.yaml"
        parent = {"extends": str(ROOT / "configs" / "quickstart" / f"{stage}.yaml"), "run": str(self.run)}
        path.write_text(json.dumps(parent | self.values.get(stage, {})))
        return [sys.executable, "-m", "psychepass.cli", stage, str(path)]

    def call(self, stage: str) -> str:
        done = subprocess.run(self.command(stage), cwd=ROOT, capture_output=True, text=True, check=False, timeout=3000)
        assert done.returncode == 0, f"{stage}: {done.stderr[-3000:]}"
        return done.stderr

    def json(self, name: str) -> Any:
        return json.loads((self.run / name).read_text())


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    made = Loop(tmp_path_factory.mktemp("loop"))
    for stage in ("simulate", "tournament", "data", "rm", "rm-eval"):
        made.call(stage)
    scorer = subprocess.Popen(made.command("serve-rm"), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        for stage in ("grpo", "best-of-n", "heldout", "report"):
            made.call(stage)
    finally:
        scorer.terminate()
        scorer.wait()
    yield made


def test_every_file_is_there_and_whole(loop: Loop) -> None:
    run = loop.run
    sessions = records.read(run / "sessions.jsonl", Session)
    assert {s.split for s in sessions} == {"train", "test", "dev"}
    assert len(sessions) == 4 * len(CONTESTANTS.split()) + 2 * 2
    battles = records.read(run / "battles.jsonl", Battle)
    assert len(battles) == 4 * 2 * 2, "4 clients, 2 rounds, 2 matches a round"
    pairs = records.read(run / "pairs.jsonl", PreferencePair)
    known = {b.id for b in battles}
    assert pairs and all(set(p.battles) <= known for p in pairs)
    metrics = loop.json("reward_model/metrics.json")
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"] and metrics["n"] > 0
    assert "longer_wins" in metrics
    summary = loop.json("heldout/summary.json")
    assert set(summary["dimensions"]) == {d.value for d in battles[0].verdicts}
    assert {"win", "loss", "tie", "low", "high", "n", "judge"} <= summary["overall"].keys()
    assert summary["opened"] == 1
    page = (run / "report.html").read_text()
    assert "does not replace a clinician" in " ".join(page.split())
    assert list((run / "figures").glob("*.png"))
    chosen = loop.json("best_of_n/summary.json")
    assert chosen["clients"] == 2 and set(chosen["gain"]) == {"1", "2"} and chosen["samples"] == 3
    assert chosen["reward_model"] == metrics["model"]
    stages = {"simulate", "tournament", "data", "rm", "rm-eval", "grpo", "best-of-n", "heldout", "report"}
    assert {p.stem for p in (run / "manifests").glob("*.json")} == stages
    assert not (run / "scorer.json").exists()


def test_grpo_moved_two_workers_in_step(loop: Loop) -> None:
    rows = [json.loads(line) for line in (loop.run / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2]
    assert max(r["prob_diff_max"] for r in rows) < 1e-6


def test_a_second_call_of_every_stage_does_nothing(loop: Loop) -> None:
    before = {p: p.read_bytes() for p in loop.run.rglob("*") if p.is_file() and p.suffix != ".lock"}
    for stage in ("simulate", "tournament", "data", "rm", "rm-eval", "grpo", "best-of-n", "heldout", "report"):
        assert "done before" in loop.call(stage)
    assert {p: p.read_bytes() for p in loop.run.rglob("*") if p.is_file() and p.suffix != ".lock"} == before


@pytest.mark.parametrize("stage", ["tournament", "data"])
def test_made_again_from_the_same_sessions_it_is_byte_equal(loop: Loop, stage: str, tmp_path: Path) -> None:
    """In a run directory of its own, with hard links to what the stage reads."""
    again = tmp_path / "run"
    again.mkdir()
    read = ["sessions.jsonl", "scripts.jsonl", "profiles.jsonl"]
    made = ["battles.jsonl", "ratings.json", "judge.json"] if stage == "tournament" else ["pairs.jsonl", "data.json"]
    for name in read if stage == "tournament" else [*read, "battles.jsonl", "judge.json"]:
        os.link(loop.run / name, again / name)
    command = [*loop.command(stage), f"run={again}"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=1200)
    for name in made:
        assert (again / name).read_bytes() == (loop.run / name).read_bytes(), name
