"""Stage `grpo` for real: Ray, verl, two FSDP2 workers, a scorer over HTTP, a SIGKILL, and the end.

One test, because each start of Ray and verl takes the better part of a minute.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rl.ray_session import MARK
from tests.conftest import ROOT
from tests.grpo_rig import http_scorer, write_prompts
from tests.tiny import tiny_model

STEPS = 4
KEYS = {"reward_mean", "reward_std", "kl_loss", "grad_norm", "prob_diff_max", "prob_diff_mean", "seconds"}
KEYS |= {"response_length", "truncated_share", "clip_share", "guarded_share", "learning_rate"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def ray_processes(temp: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == temp:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


class Stage:
    """The stage's command line on a tiny policy; `values` are key=value overrides."""

    def __init__(self, run: Path, model: Path, *values: str):
        self.run = run
        config = run.parent / "grpo.yaml"
        config.write_text(f"extends: {ROOT}/configs/quickstart/grpo.yaml\nrun: {run}\nmodel: {model}\n")
        own = """workers=2 batch_size=4 responses=3 lora=null learning_rate=1e-3 max_prompt_tokens=128
            max_response_tokens=12 tokens_per_worker=512 validate_every=2 validation_prompts=2 save_every=1"""
        self.command = [sys.executable, "-m", "psychepass.cli", "grpo", str(config), *own.split(), *values]

    def start(self, **env: str) -> subprocess.Popen[str]:
        pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        return subprocess.Popen(self.command, cwd=ROOT, env=os.environ | env, text=True, **pipes)  # type: ignore[call-overload]

    def call(self, **env: str) -> tuple[int, str]:
        process = self.start(**env)
        _, error = process.communicate(timeout=1500)
        return process.returncode, error


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
def test_grpo_from_prompts_to_policy(tmp_path: Path) -> None:
    run, model = tmp_path / "run", tiny_model(tmp_path)
    run.mkdir()
    write_prompts(run / "prompts.parquet", 8, 2)
    (run / "data.json").write_text(json.dumps({"logprob_band": [-4.5, -0.1]}))
    metrics, ray_file = run / "grpo" / "metrics.jsonl", run / "grpo" / "ray.json"

    with http_scorer() as scorer:
        scorer.dimensions = ["empathy", "crisis"]
        stage = Stage(run, model, f"scorer_url={scorer.url}", "scorer_timeout_s=1500", f"steps={STEPS}")
        scorer.answered_at_once = 2 + 4 + 4 + 2  # validation, two steps, validation: the third step waits for the kill
        process = stage.start()
        checkpoint = run / "grpo" / "checkpoints" / "global_step_2" / "complete"
        deadline = time.monotonic() + 1500
        while not checkpoint.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        temp = json.loads(ray_file.read_text())["temp_dir"]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        scorer.answered_at_once = math.inf
        scorer.go_on.set()
        second = metrics.read_text()
        assert len(second.splitlines()) == 2

        code, error = stage.call()
        assert code == 0, error
        told = "Reward model letters was never trained on engagement: its rewards there mean nothing."
        assert f"grpo: {told}" in error
        assert json.loads((run / "manifests" / "grpo.json").read_text())["notes"]["warnings"] == [told]
        assert not ray_processes(temp)
        assert metrics.read_text().startswith(second)

    rows = lines(metrics)
    assert [r["step"] for r in rows] == list(range(1, STEPS + 1))
    assert all(row.keys() >= KEYS for row in rows)
    assert max(r["prob_diff_max"] for r in rows) < 1e-6, "before the first update and after each"
    assert rows[0]["kl_loss"] == 0 and all(r["kl_loss"] > 0 for r in rows[1:])
    assert all(r["grad_norm"] > 0 for r in rows)
    assert [v["step"] for v in lines(run / "grpo" / "validation.jsonl")] == [0, 2, 4]
    assert {r["key"] for r in json.loads((run / "grpo" / "overrides.json").read_text())} >= {"workers", "hardware"}
    assert not ray_file.exists()
    check_policy(run, model)
    code, error = stage.call(PYTHONPROFILEIMPORTTIME="1")
    assert code == 0 and "done before" in error
    loaded = {line.rsplit("|", 1)[1].strip() for line in error.splitlines() if line.startswith("import time:")}
    assert "rl.config" in loaded and not {"torch", "ray", "verl", "transformers"} & loaded, "it is quick"


def check_policy(run: Path, base: Path) -> None:
    """The exported folder loads, is not the base, and says exactly what the last validation heard."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from psychepass.schema import Sampling
    from rl.verl_cpu.rollout import request_seed
    from rollout_env.local_model import LocalModel, Request

    policy = run / "policy"
    assert "does not replace a clinician" in (policy / "README.md").read_text().replace("\n", " ")
    trained, untrained = (AutoModelForCausalLM.from_pretrained(p) for p in (policy, base))
    assert trained.dtype == torch.float32
    assert not torch.equal(trained.lm_head.weight, untrained.lm_head.weight)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template
    local = LocalModel.load(policy)
    heard = lines(run / "grpo" / "validations" / f"{STEPS}.jsonl")
    dev = {}
    for row in read_prompts(run / "grpo" / "dev.parquet"):
        ids = tuple(tokenizer.apply_chat_template(row, add_generation_prompt=True, return_dict=True)["input_ids"])
        dev[tokenizer.decode(ids, skip_special_tokens=True)] = ids
    for row in heard:
        ids = dev[row["input"]]
        sampling = Sampling(temperature=0.8, max_tokens=12)
        reply = local.generate([Request(ids, sampling, request_seed(0, STEPS, ids, 1))])[0]
        assert reply.text == row["output"]


def read_prompts(path: Path) -> list[Any]:
    import pyarrow.parquet as pq

    return [row["prompt"] for row in pq.read_table(path).to_pylist()]
