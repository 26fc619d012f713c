"""Ray for one stage: a small cluster of its own that leaves nothing behind, or a cluster that is there.

Every process of our cluster carries MARK in its environment, so what a killed stage left can be found and
ended without touching anything else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from psychepass import records
from psychepass.run import say

MARK = "PSYCHEPASS_RAY"
ROOT = Path(__file__).resolve().parent.parent
SCHEDULING_CPUS = 16  # tokens for Ray's scheduler
HELPERS, A_WORKER = 10, 3  # of them verl's helper actors take one each, and its placement so many a worker
START_S, STARTS = 300, 2  # on a busy machine Ray's processes take longer to start than Ray waits for them


@contextmanager
def ray_session(
    folder: Path, environment: dict[str, str], workers: int, on_cpu: bool, address: str | None
) -> Iterator[None]:
    """Start Ray (or join `address`), yield, and stop what was started, also on error.

    `folder`/ray.json names the cluster while it lives; a stale one is ended first. On a machine without
    GPUs `workers` GPU tokens are announced, which verl's placement asks for.
    """
    reap(folder)
    if address is not None:
        _init(environment, address=address)
        try:
            yield
        finally:
            _ray().shutdown()
        return
    temp = Path(tempfile.mkdtemp(prefix="psy-", dir="/tmp"))  # Ray puts sockets here: the path must be short
    records.write_json(folder / "ray.json", {"temp_dir": str(temp), "driver": os.getpid()})
    tempfile.tempdir = str(temp)  # verl leaves lock files where temporary files go
    os.environ[MARK] = str(temp)  # only while Ray starts: other children of this process are not Ray's
    try:
        tokens = {"num_cpus": max(SCHEDULING_CPUS, HELPERS + A_WORKER * workers, os.cpu_count() or 1)}
        tokens |= {"num_gpus": workers} if on_cpu else {}
        _start(temp, environment, tokens)
        del os.environ[MARK]
        yield
    except BaseException:
        _keep_logs(temp, folder / "ray_logs")
        raise
    finally:
        os.environ.pop(MARK, None)
        tempfile.tempdir = None
        _ray().shutdown()
        _end(temp, patience_s=10.0)
        (folder / "ray.json").unlink(missing_ok=True)


def _ray() -> Any:
    """Imported late, so that a stage that was done before stays quick."""
    import ray

    return ray


def _init(environment: dict[str, str], **kwargs: Any) -> None:
    os.environ.update(environment)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**environment, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    _ray().init(runtime_env={"env_vars": variables}, log_to_driver=False, logging_level="ERROR", **kwargs)


def _start(temp: Path, environment: dict[str, str], tokens: dict[str, int]) -> None:
    """A cluster under `temp`; once more where that fails: a raylet gives up on its agents, whatever is set."""
    for left in reversed(range(STARTS)):
        try:
            with _patience():
                _init(
                    {**environment, "TMPDIR": str(temp)},
                    include_dashboard=False,
                    _temp_dir=str(temp),
                    **tokens,
                )
            return
        except Exception as e:
            if not left:
                raise
            say(f"grpo: Ray did not start ({e}); once more")
            _ray().shutdown()
            _end(temp, patience_s=0.0)
            temp.mkdir()


@contextmanager
def _patience() -> Iterator[None]:
    """Inside, ray.init waits START_S for its raylet in place of 30 s, which no setting of Ray's changes."""
    from ray._private import services

    find = services.get_node

    def find_in_time(*where: Any) -> Any:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return find(*where)
            except RuntimeError:  # not registered yet
                if time.monotonic() > deadline or not _raylet_lives():
                    raise
            time.sleep(0.1)

    services.get_node = find_in_time
    try:
        yield
    finally:
        services.get_node = find


def _raylet_lives() -> bool:
    children = psutil.Process().children()
    return any(c.name() == "raylet" and c.status() != psutil.STATUS_ZOMBIE for c in children if c.is_running())


def reap(folder: Path) -> None:
    """End the cluster that a killed run of this folder left behind, if one did."""
    path = folder / "ray.json"
    if not path.is_file():
        return
    temp = Path(records.read_json(path)["temp_dir"])
    ended = _end(temp, patience_s=0.0)
    path.unlink()
    if ended:
        say(f"grpo: ended {ended} processes of an earlier, killed run ({temp})")


def _keep_logs(temp: Path, target: Path) -> None:
    """What the workers printed, for whoever looks for the cause of an error."""
    shutil.rmtree(target, ignore_errors=True)
    for log in (temp / "session_latest" / "logs").glob("worker-*"):
        if log.stat().st_size:
            target.mkdir(exist_ok=True)
            shutil.copy(log, target)
    say(f"grpo: stopped by an error; what the workers printed is in {target}")


def _end(temp: Path, patience_s: float) -> int:
    """End every process marked with `temp`, after `patience_s` for those that are ending by themselves.

    Again until none is there: one may start another just before it is killed.
    """
    deadline = time.monotonic() + patience_s
    while (left := _marked(temp)) and time.monotonic() < deadline:
        time.sleep(0.2)
    ended, deadline = set(left), time.monotonic() + 60
    while left and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        left = _marked(temp)
        ended.update(left)
    shutil.rmtree(temp, ignore_errors=True)
    return len(ended)


def _marked(temp: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(temp):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
