"""Ray's start is waited for and its processes are found, however busy the machine; the whole is in test_grpo_e2e."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from psychepass.config import load
from psychepass.errors import UserError
from rl import ray_session, verl_config
from rl.config import GRPOConfig
from tests.conftest import ROOT


def marked(temp: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sleep", "600"], env=os.environ | {ray_session.MARK: str(temp)})
    while ray_session.MARK not in psutil.Process(process.pid).environ():  # empty until its exec is over
        time.sleep(0.001)
    return process


def test_a_process_that_is_started_while_the_others_are_ended_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, late, other = marked(tmp_path), [], marked(tmp_path / "other")
    look = ray_session._marked

    def look_and_start_one(temp: Path) -> list[psutil.Process]:
        found = look(temp)
        if not late:
            late.append(marked(temp))
        return found

    monkeypatch.setattr(ray_session, "_marked", look_and_start_one)
    assert ray_session._end(tmp_path, patience_s=0.0) == 2
    assert first.poll() is not None and late[0].poll() is not None
    assert other.poll() is None, "of another cluster"
    other.kill()
    other.wait()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_raylet_that_registers_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    tries: list[Any] = []

    def get_node(*where: Any) -> dict[str, str]:
        tries.append(where)
        if len(tries) < 4:
            raise RuntimeError("not registered")
        return {"node": "here"}

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(ray_session, "_raylet_lives", lambda: True)
    with ray_session._patience():
        assert services.get_node("address", "node") == {"node": "here"} and tries == [("address", "node")] * 4
    assert services.get_node is get_node
    for name, value in (("START_S", -1), ("_raylet_lives", lambda: False)):
        tries.clear()
        with monkeypatch.context() as patch:
            patch.setattr(ray_session, name, value)
            with ray_session._patience(), pytest.raises(RuntimeError, match="not registered"):
                services.get_node("address", "node")
        assert len(tries) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_start_that_failed_is_cleared_away_and_made_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[subprocess.Popen[bytes]] = []

    def init(fails: int, **_: Any) -> None:
        if len(left) < fails:
            left.append(marked(temp))
            raise RuntimeError("The current node timed out")

    for fails in (1, 2):
        left.clear()
        temp = tmp_path / str(fails)
        temp.mkdir()
        fake = SimpleNamespace(init=partial(init, fails), shutdown=lambda: None)
        monkeypatch.setattr(ray_session, "_ray", lambda fake=fake: fake)
        with nullcontext() if fails == 1 else pytest.raises(RuntimeError, match="timed out"):
            ray_session._start(temp, {}, {})
        assert left[0].poll() is not None and temp.is_dir()
        assert capsys.readouterr().err.count("Ray did not start") == 1
        for process in left:
            process.kill()
            process.wait()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.filterwarnings("ignore")
def test_a_second_run_on_one_cluster_is_refused(tmp_path: Path) -> None:
    import ray

    from rl.controller import refuse_company

    with ray_session.ray_session(tmp_path, {}, 1, True, None):
        refuse_company()
        queue = ray.remote(num_cpus=0)(SimpleNamespace)
        other = queue.options(name="TransferQueueController", namespace="transfer_queue").remote()
        with pytest.raises(UserError, match="another run of verl is on this Ray cluster"):
            refuse_company()
        del other


def test_ray_knows_every_setting_that_it_is_given() -> None:
    """It ignores others in silence."""
    import ray

    folder = Path(ray.__file__).parent
    code = [folder / "core/src/ray/raylet/raylet", *(folder / "_private").rglob("*.py")]
    known = b"\n".join(path.read_bytes() for path in code)
    config = load(GRPOConfig, ROOT / "configs" / "quickstart" / "grpo.yaml")
    given = [name for name in verl_config.environment(config) if name.startswith("RAY_")]
    assert len(given) > 5 and [n for n in given if n.encode() not in known] == []
    assert b"RAY_no_such_setting" not in known
