"""launch/rm.sbatch, submitted to a real Slurm of one node with CPU values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from psychepass import records
from reward_model import model as models
from tests import slurm_rig
from tests.conftest import ROOT
from tests.test_reward_model import log_of, write_config, write_run
from tests.tiny import tiny_model

pytestmark = pytest.mark.skipif(slurm_rig.missing() is not None, reason=str(slurm_rig.missing()))


def test_a_job_trains_the_reward_model_on_two_processes(tmp_path):
    run = write_run(tmp_path / "run", train=2, test=1)
    config = write_config(tmp_path, run, tiny_model(tmp_path), two_pass=True, epochs=1)
    out = tmp_path / "job.out"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with slurm_rig.one_node(cpus=2) as env:
        values = ["--gpus-per-node=0", "--cpus-per-task=2", f"--output={out}", "--wait"]
        command = ["sbatch", *values, "launch/rm.sbatch", str(config)]
        job = env | {"NPROC": "2", "PATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=job, capture_output=True, text=True, timeout=1500)
    said = out.read_text() if out.is_file() else ""
    assert done.returncode == 0, done.stderr + said[-3000:]
    assert [r["step"] for r in log_of(run)] == [1, 2] and said.count("rm: done in") == 1
    assert records.read_json(run / "manifests" / "rm.json")["ended"]
    models.load(run / "reward_model")
