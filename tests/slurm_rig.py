"""A real Slurm of one node, for tests: its own key, ports and folders, ended with the test.

Needs root and Debian's slurm-wlm and munge (`apt-get install slurm-wlm munge`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serve_rig import free_ports

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo", "scontrol")
NODE = "localhost"


def missing() -> str | None:
    """Why there can be no Slurm here, in a word; None if there can."""
    lost = [name for name in NEEDED if _find(name) is None]
    if lost:
        return f"{lost[0]} is not installed: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def one_node(cpus: int) -> Iterator[dict[str, str]]:
    """The environment in which sbatch and its kin reach a Slurm of `cpus` processors."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # munge refuses paths that others may write
    folder.chmod(0o755)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        conf = _write_conf(folder, cpus)
        daemons.append(_munged(folder))
        _wait(lambda: (folder / "munge" / "socket").exists(), "munged")
        env = os.environ | {"SLURM_CONF": str(conf)}
        for words in (["slurmctld", "-D", "-f", str(conf)], ["slurmd", "-D", "-f", str(conf), "-N", NODE]):
            with (folder / f"{words[0]}.out").open("wb") as out:
                daemons.append(subprocess.Popen([_find(words[0]) or words[0], *words[1:]], env=env, stderr=out))
        _wait(lambda: "idle" in _sinfo(env), f"slurmd (see {folder})")
        yield env
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _sinfo(env: dict[str, str]) -> str:
    return subprocess.run(["sinfo", "-h", "-o", "%T"], env=env, capture_output=True, text=True).stdout


def _wait(ready, what: str, timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end, f"{what} did not come up in {timeout_s:.0f} s"
        time.sleep(0.3)


def _munged(folder: Path) -> subprocess.Popen[bytes]:
    home = folder / "munge"
    home.mkdir(mode=0o755)
    key = home / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    for path in (home, key):
        shutil.chown(path, "munge", "munge")
    paths = {name: f"--{name}={home / name.removesuffix('-file')}" for name in ("key-file", "log-file", "pid-file")}
    command = [_find("munged") or "munged", "--foreground", f"--socket={home / 'socket'}", *paths.values()]
    return subprocess.Popen([*command, f"--seed-file={home / 'seed'}"], user="munge", group="munge")


def _write_conf(folder: Path, cpus: int) -> Path:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf, ports = folder / "slurm.conf", free_ports(2)
    conf.write_text(f"""ClusterName=test
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
MessageTimeout=100
TCPTimeout=60
BatchStartTimeout=300
SlurmdTimeout=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={NODE} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={NODE} Default=YES MaxTime=INFINITE State=UP
""")
    return conf
