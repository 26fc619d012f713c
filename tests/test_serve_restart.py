"""Stage serve-rm as its own process, killed while callers wait: the same rewards later, or one error, never others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import Dimension, Message
from psychepass.scoring import ScoreGroup, Scorer
from reward_model import model as models
from reward_model.scorer import GroupScorer
from rl.reward import Gather, group_scores
from tests.conftest import ROOT
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.timeout(900)
REPLIES = ("You feel tired.", "Go on.", "What keeps you awake?")


def group(number: int) -> ScoreGroup:
    context = (Message(role="user", content=f"I can't sleep, for {number} nights."),)
    return ScoreGroup(context=context, responses=REPLIES, dimensions=(Dimension.EMPATHY, Dimension.CRISIS))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a reward model."""
    folder = tmp_path_factory.mktemp("restart")
    model = models.from_base(tiny_model(folder), 2, seed=0)
    card = models.save(model, tiny_tokenizer(), folder / "reward_model", "tiny", 256, 64)
    models.finish(model, folder / "reward_model", card)
    (folder / "serve.yaml").write_text(json.dumps({"run": str(folder)}))
    return folder


def expected(run: Path, numbers: range) -> list[list[list[float]]]:
    return GroupScorer.load(run / "reward_model").score([group(n) for n in numbers])


@contextmanager
def service(run: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "psychepass.cli", "serve-rm", str(run / "serve.yaml"), *overrides]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=120)


def holder(process: subprocess.Popen[str]) -> psutil.Process:
    """The process that holds the model, also where one before it has only just died."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children()
            if len(children) == 1 and children[0].status() != psutil.STATUS_ZOMBIE:
                return children[0]
        time.sleep(0.01)
    raise AssertionError(f"no process holds the model, status {process.poll()}")


def sample_and_score(
    scorer: Scorer, numbers: range, results: dict[int, Any], go_on: threading.Event | None = None
) -> threading.Thread:
    """A GRPO worker: for each group, its replies join one after another and are scored in one call.

    With `go_on` at most half of the groups are asked about at once, and after the first result nothing more is done
    until it is set.
    """
    at_once = asyncio.Semaphore(len(numbers) // 2 if go_on else len(numbers))

    async def score(number: int, texts: list[str]) -> list[tuple[float, list[float]]]:
        asked = group(number).model_copy(update={"responses": tuple(texts)})
        rewards_RD = (await scorer.ascore([asked]))[0]
        return list(zip(group_scores(rewards_RD), rewards_RD, strict=True))

    async def of_group(gather: Gather, number: int) -> None:
        async with at_once:
            joins = [gather.join(str(number), 3, text, lambda t: score(number, t), 0.2) for text in REPLIES]
            results[number] = await asyncio.gather(*joins, return_exceptions=True)
        if go_on:
            go_on.wait()

    async def all_groups() -> None:
        gather = Gather()
        await asyncio.gather(*(of_group(gather, number) for number in numbers))

    thread = threading.Thread(target=lambda: asyncio.run(all_groups()), daemon=True)
    thread.start()
    return thread


def stopped(process: psutil.Process) -> None:
    """Stop it, so that whoever asks now waits with the request under way."""
    process.suspend()
    deadline = time.monotonic() + 60
    while process.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.01)


def dead(*processes: psutil.Process) -> None:
    """Kill them; what they held is free."""
    for process in processes:
        process.kill()
    deadline = time.monotonic() + 60
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def check(results: dict[int, Any], rewards: list[list[list[float]]]) -> None:
    for number, of_group in enumerate(rewards):
        found = [raw for _, raw in results[number]]
        assert found == [pytest.approx(row, abs=2e-6) for row in of_group]
        assert [s for s, _ in results[number]] == pytest.approx(group_scores(of_group), abs=1e-2)


def test_a_service_whose_model_process_is_killed_goes_on_and_the_callers_get_their_rewards(run: Path) -> None:
    with service(run) as process:
        scorer = Scorer.of_run(run, timeout_s=240)
        before = holder(process)
        address = records.read_json(run / "scorer.json")
        results: dict[int, Any] = {}
        go_on = threading.Event()
        waiting = sample_and_score(scorer, range(60), results, go_on)
        while not results and waiting.is_alive():
            time.sleep(0.001)
        stopped(before)
        go_on.set()
        time.sleep(0.5)
        answered = len(results)
        assert 1 <= answered < 60, "the others' requests are with the service, longer than a sibling may wait"
        before.kill()
        waiting.join(240)
        check(results, expected(run, range(60)))
        assert holder(process).pid != before.pid
        assert records.read_json(run / "scorer.json") == address, "the address stays"
    assert not (run / "scorer.json").exists() and process.returncode == 0
    assert not before.is_running()


def test_a_service_killed_whole_and_started_again_elsewhere_is_found(run: Path) -> None:
    with service(run) as process:
        scorer = Scorer.of_run(run, timeout_s=240)
        child, old = holder(process), scorer.url
        stopped(child)
        results: dict[int, Any] = {}
        waiting = sample_and_score(scorer, range(4), results)
        time.sleep(0.3)
        dead(psutil.Process(process.pid), child)
        assert not results and (run / "scorer.json").exists(), "nobody could take the old address away"
    with socket.socket() as other:  # somebody has the old port, and listens to nobody
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(old.rsplit(":", 1)[1])))
        with service(run):
            waiting.join(240)
        check(results, expected(run, range(4)))
        assert scorer.url != old


def test_a_scorer_that_never_comes_back_is_one_error_and_no_reward(run: Path) -> None:
    with service(run) as process:
        scorer = Scorer.of_run(run, timeout_s=240)
        scorer.timeout_s = 3
        stopped(holder(process))
        results: dict[int, Any] = {}
        begun = time.monotonic()
        waiting = sample_and_score(scorer, range(2), results)
        time.sleep(0.3)
        holder(process).kill()
        process.kill()
        waiting.join(120)
    assert 3 <= time.monotonic() - begun < 60
    assert len(results) == 2
    for errors in results.values():
        assert all(isinstance(e, UserError) for e in errors) and len(errors) == 3
        assert f"scorer {scorer.url} gave no rewards within 3 s (last: " in str(errors[0])


def test_another_model_in_its_place_is_refused(run: Path, tmp_path: Path) -> None:
    model = models.from_base(tiny_model(tmp_path), 1, seed=1)
    card = models.save(model, tiny_tokenizer(), tmp_path / "other", "tiny", 256, 64)
    models.finish(model, tmp_path / "other", card)
    with service(run):
        first = Scorer.of_run(run, timeout_s=240)
    again = Scorer(**first.arguments())
    with service(run, f"model={tmp_path / 'other'}"):
        Scorer.of_run(run, timeout_s=240)
        with pytest.raises(UserError, match=f"changed its model from '{first.model}' to '{card.model}'"):
            again.score([group(0)])


def test_no_model_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(json.dumps({"run": str(tmp_path)}))
    with service(tmp_path) as process:
        _, error = process.communicate(timeout=240)
    assert process.returncode == 2
    assert error.count("\n") == 1 and "no finished reward model here" in error, error


KEPT = """
import os, signal, sys, time
from psychepass.errors import UserError
from reward_model import keeper
keeper.WITHIN_S = float(sys.argv[2])
def work(ready):
    print(os.getpid(), flush=True)
    if sys.argv[1] == "early":
        raise SystemExit(3)
    ready()
    if sys.argv[1] == "never":
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)
try:
    keeper.keep("test", work)
except UserError as e:
    print(e)
"""


@pytest.mark.parametrize(
    ("when", "within_s", "lives", "said"),
    [
        ("early", "600", 1, "ended with 3 before it was ready"),
        ("late", "600", 5, "ended with -9, the 5th time within 10 minutes"),
    ],
)
def test_a_child_that_keeps_dying_is_given_up(when: str, within_s: str, lives: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEPT, when, within_s], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    *pids, last = done.stdout.splitlines()
    assert len(set(pids)) == lives and said in last, done


def test_deaths_that_lie_far_apart_are_not_counted_together() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KEPT, "late", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert len({process.stdout.readline() for _ in range(8)}) == 8
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)


def test_a_child_ends_with_its_keeper_also_where_that_is_killed() -> None:
    command = [sys.executable, "-c", KEPT, "never", "600"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate()
    assert psutil.wait_procs([child], timeout=120)[0] == [child]
