"""Stage `grpo` while its scorer dies: killed for good, replaced by another model, killed and started again.

One test, because each start of Ray and verl takes the better part of a minute. What was recorded as a reward is
computed again in this process: none may differ, and none may be there for a reply that no scorer saw.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from psychepass import records
from psychepass.schema import Dimension
from psychepass.scoring import ScoreGroup, Scorer
from reward_model import model as models
from reward_model.scorer import GroupScorer
from rl.prompts import context_of
from rl.reward import group_scores
from tests.grpo_rig import write_prompts
from tests.test_grpo_e2e import Stage, lines, read_prompts
from tests.test_serve_restart import holder, service, stopped
from tests.tiny import tiny_model, tiny_tokenizer

STEPS = 3
DIMENSIONS = ("empathy", "engagement")


def save_reward_model(run: Path, name: str, seed: int) -> Path:
    model = models.from_base(tiny_model(run), 2, seed=seed)
    card = models.save(model, tiny_tokenizer(), run / name, "tiny", 256, 64)
    models.finish(model, run / name, card)
    return run / name


def stop_with_a_request(process: subprocess.Popen[str], run: Path) -> psutil.Process:
    """Stop the process that holds the model, and wait until a worker's request is with it."""
    model = holder(process)
    port = int(str(records.read_json(run / "scorer.json")["url"]).rsplit(":", 1)[1])
    stopped(model)
    deadline = time.monotonic() + 1500
    while time.monotonic() < deadline:
        there = [c for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port]  # pyright: ignore
        if any(c.status == psutil.CONN_ESTABLISHED for c in there):
            return model
        time.sleep(0.05)
    raise AssertionError("nobody asked the scorer")


def wait_for(stage: subprocess.Popen[str], path: Path, n_lines: int) -> None:
    deadline = time.monotonic() + 1500
    while len(lines(path)) < n_lines:
        assert stage.poll() is None, stage.communicate()[1]
        assert time.monotonic() < deadline, f"{path} has {len(lines(path))} lines, not {n_lines}"
        time.sleep(0.05)


@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
def test_grpo_outlives_its_scorer_and_invents_no_reward(tmp_path: Path) -> None:
    run, policy = tmp_path / "run", tiny_model(tmp_path)
    run.mkdir()
    write_prompts(run / "prompts.parquet", 8, 2, DIMENSIONS)
    rewarding, other = save_reward_model(run, "reward_model", 0), save_reward_model(run, "other", 1)
    (run / "serve.yaml").write_text(json.dumps({"run": str(run)}))
    metrics = run / "grpo" / "metrics.jsonl"
    values = ("scorer_url=null", f"steps={STEPS}", "likelihood_guard=false")

    with service(run) as process:  # it dies under the first step and stays away
        Scorer.of_run(run, timeout_s=1500)
        stage = Stage(run, policy, *values, "scorer_timeout_s=15").start()
        wait_for(stage, run / "grpo" / "validation.jsonl", 1)
        model = stop_with_a_request(process, run)
        process.kill()
        model.kill()
        _, error = stage.communicate(timeout=1500)
    assert stage.returncode == 2, error
    # of a step's replies; or of a validation's two, where steps went by before the scorer was stopped
    assert re.search(r"step \d: \d+ of (12|2) replies have no reward: .* gave no rewards within 15 s", error), error
    done = len(lines(metrics))
    assert done < STEPS and len(list((run / "grpo").glob("rollouts/*"))) == done

    with service(run, f"model={other}"):  # another one in its place
        code, error = Stage(run, policy, *values, "scorer_timeout_s=1500").call()
    assert code == 2 and "serve " in error and "again, or use another run directory" in error, error
    assert len(lines(metrics)) == done

    whole = Stage(run, policy, *values, "scorer_timeout_s=1500")
    with service(run) as process:  # its model process dies, and is started again at the same address
        stage = whole.start()
        assert stage.stderr is not None and any("rewards from" in line for line in stage.stderr)  # it was healthy
        stop_with_a_request(process, run).kill()
        wait_for(stage, metrics, done + 1)
        model = stop_with_a_request(process, run)  # then all of it, and somebody starts another one
        process.kill()
        model.kill()
    with service(run):
        _, error = stage.communicate(timeout=1500)
    assert stage.returncode == 0, error
    assert [r["step"] for r in lines(metrics)] == list(range(1, STEPS + 1))
    check_rewards(run, rewarding)


def check_rewards(run: Path, rewarding: Path) -> None:
    """Every recorded score of every step is the model's own."""
    scorer = GroupScorer.load(rewarding)
    tokenizer: Any = tiny_tokenizer()
    contexts = {}
    for prompt in read_prompts(run / "grpo" / "train.parquet"):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        contexts[tokenizer.decode(ids, skip_special_tokens=True)] = context_of(prompt)
    dimensions = tuple(Dimension(d) for d in DIMENSIONS)
    for row in lines(run / "grpo" / "metrics.jsonl"):
        groups = defaultdict(list)
        for reply in lines(run / "grpo" / "rollouts" / f"{row['step']}.jsonl"):
            groups[reply["input"]].append(reply)
        raw = []
        for text, replies in groups.items():
            outputs = tuple(r["output"].strip() for r in replies)
            asked = ScoreGroup(context=contexts[text], responses=outputs, dimensions=dimensions)
            (rewards_RD,) = scorer.score([asked])
            assert [r["score"] for r in replies] == pytest.approx(group_scores(rewards_RD), abs=2e-2)
            raw += [sum(r) / len(r) for r in rewards_RD]
        assert len(raw) == 12
        assert row["reward_mean"] == pytest.approx(sum(raw) / len(raw), abs=1e-5)
