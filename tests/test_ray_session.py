"""Ray's start is waited for and its processes are found, however busy the machine; the whole is in test_grpo_e2e."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from psychepass.config import load
from rl import ray_session, verl_config
from rl.config import GRPOConfig
from tests.conftest import ROOT


def marked(temp: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], env=os.environ | {ray_session.MARK: str(temp)})


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
    with ray_session._patient_start():
        assert services.get_node("address", "node") == {"node": "here"} and tries == [("address", "node")] * 4
    assert services.get_node is get_node
    monkeypatch.setattr(ray_session, "START_S", -1)
    tries.clear()
    with ray_session._patient_start(), pytest.raises(RuntimeError, match="not registered"):
        services.get_node("address", "node")


@pytest.mark.filterwarnings("ignore")
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
