"""Stage rm over two processes (gloo on CPU), by torchrun: the gradients of one process, kill, resume, save."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from psychepass import records
from psychepass.cli import main as cli
from psychepass.config import StageConfig
from psychepass.errors import UserError
from psychepass.run import stage_run
from reward_model import model as models
from reward_model.journal import last_whole_checkpoint, refuse_other_world
from reward_model.packing import Branch, Packed, pack
from reward_model.ranks import deal, hand_of, score_slices
from tests.conftest import ROOT
from tests.test_reward_model import log_of, write_config, write_run
from tests.tiny import tiny_model

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed==0.19.8"
)
ENGINES = [
    pytest.param(None, id="ddp"),
    pytest.param("zero3.json", id="zero3", marks=needs_deepspeed),
]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else is given until the test ends; the launcher, which reuses addresses, can listen there."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", 0))
        yield s.getsockname()[1]


def engine(deepspeed: str | None, folder: Path) -> str | None:
    """The shipped values, but that weights as small as the tests' are parted over the ranks too."""
    if deepspeed is None:
        return None
    values = json.loads((ROOT / "configs" / deepspeed).read_text())
    values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / deepspeed
    path.write_text(json.dumps(values))
    return str(path)


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run([*launcher, *words], cwd=ROOT, env=ENV, capture_output=True, text=True)


def start_rm(config: Path, **env: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(ROOT / "launch" / "rm.sh"), str(config)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=ENV | {"PATH": path} | env, text=True, **pipes)  # type: ignore[call-overload]


def stage_rm(config: Path, **env: str) -> tuple[int, str]:
    """The stage as a user starts it, on two processes: exit status and what it said."""
    process = start_rm(config, NPROC="2", **env)
    said = process.communicate()[1]
    return process.returncode, said


# --- dealing -----------------------------------------------------------------------------------


def tree(tokens: int, scores: int = 1) -> Packed:
    return pack((0,) * (tokens - scores), [Branch((0,), attach=1)] * scores)


def test_windows_are_dealt_longest_first_to_the_least_loaded():
    assert deal([5, 9, 3, 4, 2], 2) == [[1, 2], [0, 3, 4]]  # 9 | 5, 5+4 | 9+3, 5+4+2
    assert deal([7], 3) == [[0], [], []]


def test_every_window_is_dealt_once_and_hands_are_of_one_length():
    trees = [tree(n) for n in (30, 4, 11, 8, 8, 2, 25)]
    hands = [hand_of(trees, rank, 3) for rank in range(3)]
    assert len({len(h) for h in hands}) == 1
    assert sorted(w for h in hands for w in h if w is not None) == list(range(7))
    assert hand_of(trees, 0, 1) == list(range(7))


def test_score_slices_follow_the_steps_order():
    assert score_slices([tree(5, 2), tree(9, 3)]) == [slice(0, 2), slice(2, 5)]


# --- gradients ---------------------------------------------------------------------------------


def gradients(folder: Path, config: Path, ranks: int) -> dict[str, torch.Tensor]:
    out = folder / f"{ranks}.pt"
    if ranks == 1:
        command = [sys.executable, "-m", "tests.rm_gradients", str(config), str(out)]
        done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    else:
        done = torchrun("-m", "tests.rm_gradients", str(config), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Relative L2 distance of two gradients."""
    assert found.keys() == wanted.keys()
    a, b = (torch.cat([g[n].flatten().double() for n in sorted(wanted)]) for g in (found, wanted))
    return float((a - b).norm() / b.norm())


def uneven_run(folder: Path) -> Path:
    """A run whose clients have different numbers of pairs, so that a mean of ranks' means would be wrong."""
    run = write_run(folder)
    lines = (run / "pairs.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(lines[0])["profile_id"]
    of_first = [line for line in lines if json.loads(line)["profile_id"] == first]
    (run / "pairs.jsonl").write_text("".join(line for line in lines if line not in of_first[5:]))
    return run


CASES = {
    "one window a session": {"clients_per_step": 1},
    "several windows a rank, two clients, layers recomputed": {
        "clients_per_step": 2,
        "max_length": 400,
        "gradient_checkpointing": True,
    },
    "adapters, layers recomputed": {"max_length": 400, "lora": {"rank": 2, "alpha": 4}, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("deepspeed", ENGINES)
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_two_ranks_have_the_gradient_of_one(base, tmp_path, changes, deepspeed):
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        of_ranks = {"deepspeed": engine(deepspeed if ranks > 1 else None, folder)}
        config = write_config(folder, uneven_run(folder / "run"), base, two_pass=True, layers=2, **of_ranks, **changes)
        found.append(gradients(folder, config, ranks))
    assert distance(found[1], found[0]) < 1e-5
    halved = {n: g / 2 for n, g in found[0].items()}
    assert distance(found[1], halved) > 0.5  # what averaging over the ranks would give


# --- the stage ---------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from reward_model import journal
append = journal.StepLog.append
def append_and_die(self, row):
    append(self, row)
    if row["step"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
journal.StepLog.append = append_and_die
from psychepass.cli import main
main(["rm", sys.argv[1]])
"""


@pytest.mark.parametrize("deepspeed", ENGINES)
def test_two_ranks_train_are_killed_go_on_and_end_with_the_model_of_one(base, tmp_path, deepspeed):
    changes = {"two_pass": True, "validation_clients": 1, "epochs": 2}
    alone = write_run(tmp_path / "alone")
    assert cli(["rm", str(write_config(tmp_path, alone, base, **changes))]) == 0
    run = write_run(tmp_path / "run")
    config = write_config(tmp_path, run, base, deepspeed=engine(deepspeed, tmp_path), **changes)
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    killed = torchrun(str(program), str(config))
    assert killed.returncode != 0 and f"exitcode  : {-signal.SIGKILL}" in killed.stderr
    checkpoint = last_whole_checkpoint(run / "reward_model" / "checkpoints")
    assert checkpoint is not None and bool(deepspeed) == any(checkpoint.glob("global_step*"))
    assert not (run / "reward_model" / models.CARD).exists()
    code, said = stage_rm(config)
    assert code == 0, said[-3000:]
    rows, wanted = log_of(run), log_of(alone)
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    for row, other in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-4) and row["tokens"] == other["tokens"]
    weights, others = (load_file(r / "reward_model" / "model.safetensors") for r in (run, alone))
    assert max(float((weights[k] - others[k]).abs().max()) for k in others) < 1e-4
    manifests = [records.read_json(r / "manifests" / "rm.json") for r in (run, alone)]
    assert [m["starts"] for m in manifests] == [2, 1]
    assert manifests[0]["notes"]["validation"] == manifests[1]["notes"]["validation"]
    assert said.count("[psychepass] rm: done in") == 1
    models.load(run / "reward_model")
    code, said = stage_rm(config)
    assert code == 0 and said.count("done before, nothing to do") == 1


FORCED = """
import sys
from reward_model.trainer import PairTrainer
log, accuracies = PairTrainer.log, {1: 0.7, 2: 0.6, 3: 0.8}
def forced(self, logs, start_time=None):
    if "eval_accuracy" in logs:
        logs["eval_accuracy"] = accuracies[round(self.state.epoch)]
    log(self, logs, start_time)
PairTrainer.log = forced
from psychepass.cli import main
sys.exit(main(["rm", sys.argv[1]]))
"""


@needs_deepspeed
def test_zero3_saves_the_epoch_that_it_names_also_where_that_is_the_last(base, tmp_path):
    changes = {"two_pass": True, "validation_clients": 1, "epochs": 3}
    program = tmp_path / "forced.py"
    program.write_text(FORCED)
    alone, parted = (write_run(tmp_path / name) for name in ("alone", "parted"))
    config = write_config(tmp_path, alone, base, **changes)
    assert subprocess.run([sys.executable, str(program), str(config)], cwd=ROOT, env=ENV).returncode == 0
    done = torchrun(
        str(program), str(write_config(tmp_path, parted, base, deepspeed=engine("zero3.json", tmp_path), **changes))
    )
    assert done.returncode == 0, done.stderr[-3000:]
    notes = [records.read_json(r / "manifests" / "rm.json")["notes"] for r in (alone, parted)]
    assert notes[0]["epoch"] == notes[1]["epoch"] == 3
    assert notes[0]["validation"] == notes[1]["validation"] == {"1": 0.7, "2": 0.6, "3": 0.8}
    weights, others = (load_file(r / "reward_model" / "model.safetensors") for r in (parted, alone))
    assert max(float((weights[k] - others[k]).abs().max()) for k in others) < 1e-4


def test_one_pass_is_refused_on_several_ranks(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli(["rm", str(write_config(tmp_path, write_run(tmp_path / "run"), base))]) == 2
    assert "two_pass is false, which needs one process, but WORLD_SIZE is 2" in capsys.readouterr().err


@needs_deepspeed
@pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8}, None], ids=["adapters", "all weights"])
def test_the_deepspeed_launcher_trains_in_bf16(base, tmp_path, port, lora):
    run = write_run(tmp_path / "run", train=2, test=1)
    options = {"lora": lora, "precision": "bf16", "gradient_checkpointing": True}
    zero3 = str(ROOT / "configs" / "zero3.json")
    config = write_config(tmp_path, run, base, two_pass=True, learning_rate=0.02, deepspeed=zero3, **options)
    code, said = stage_rm(config, LAUNCHER="deepspeed", MASTER_PORT=str(port))
    assert code == 0, said[-3000:]
    rows = log_of(run)
    assert len(rows) == 6 and rows[-1]["loss"] < rows[0]["loss"]
    model = models.load(run / "reward_model")[0]
    assert model.state_dict().keys() == models.from_base(base, 1, 0).state_dict().keys()


def test_the_deepspeed_launcher_is_told_which_gpus_are_meant(tmp_path):
    """A stand-in says what it was called with: no GPU is here to be taken."""
    stand_in = tmp_path / "deepspeed"
    stand_in.write_text("#!/bin/sh\necho $1 $2 >&2\n")
    stand_in.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def called(visible: str) -> tuple[int, str]:
        env = ENV | {"LAUNCHER": "deepspeed", "NPROC": "2", "CUDA_VISIBLE_DEVICES": visible, "PATH": path}
        done = subprocess.run(["bash", "launch/rm.sh", "x.yaml"], cwd=ROOT, env=env, capture_output=True, text=True)
        return done.returncode, done.stderr.strip()

    assert called("4,5,6") == (0, "--include localhost:4,5")
    assert called("") == (0, "--num_accelerators 2")
    code, said = called("GPU-1f,GPU-2a")
    assert code == 2 and "CUDA_VISIBLE_DEVICES is GPU-1f,GPU-2a; LAUNCHER=deepspeed reads numbers alone" in said


def test_gpus_that_torch_cannot_use_are_no_reason_to_train_on_the_cpu(tmp_path):
    """A stand-in for torch under a driver that is too old: no GPU is here."""
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace as N\n"
        "cuda, version = N(device_count=lambda: 8, is_available=lambda: False), N(cuda='13.0')\n"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = ENV | {"PYTHONPATH": str(tmp_path), "NPROC": "8", "PATH": path}
    done = subprocess.run(["bash", "launch/rm.sh", "x.yaml"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "torch sees 8 GPUs and can use none; it is built for CUDA 13.0, which needs a newer driver" in done.stderr


def test_deepspeed_without_a_launcher_or_file_is_one_clear_error(base, tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", train=1, test=1)
    zero3 = str(ROOT / "configs" / "zero3.json")
    assert cli(["rm", str(write_config(tmp_path, run, base, deepspeed=zero3))]) == 2
    assert "zero3.json needs a launcher, even for one process" in capsys.readouterr().err
    assert cli(["rm", str(write_config(tmp_path, run, base, deepspeed="none.json"))]) == 2
    assert "deepspeed = none.json: no such file" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "0")
    own = str(tmp_path / "own.json")
    auto = {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}
    for values, said in (
        ("{", "own.json: not JSON"),
        ('{"zero_optimization": {"stage": 2}}', "own.json: zero_optimization.stage must be 3"),
        ('{"zero_optimization": {"stage": 3}, "scheduler": {}}', "own.json: scheduler is set, but stage rm makes its"),
        (json.dumps(auto), "own.json: zero_optimization.reduce_bucket_size is 'auto'; permitted: a number"),
    ):
        Path(own).write_text(values)
        assert cli(["rm", str(write_config(tmp_path, run, base, deepspeed=own))]) == 2
        assert said in capsys.readouterr().err


def test_other_ranks_leave_lock_and_manifest_to_rank_0(tmp_path):
    config = StageConfig(run=str(tmp_path))
    with stage_run("rm", config, rank=0), stage_run("rm", config, rank=1) as other:
        assert not other.done
        assert records.read_json(tmp_path / "manifests" / "rm.json")["starts"] == 1
    with stage_run("rm", config, rank=1) as other:
        assert other.done


def test_two_nodes_train_one_model(base, tmp_path, port):
    """rm.sh once a node, as rm.sbatch calls it; here both nodes are this machine."""
    run = write_run(tmp_path / "run", train=1, test=1)
    config = write_config(tmp_path, run, base, two_pass=True, epochs=1)
    nodes = {"NNODES": "2", "NPROC": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [start_rm(config, NODE_RANK=str(rank), **nodes) for rank in range(2)]
    with ThreadPoolExecutor() as pool:  # both at once: neither waits for the other to be read
        said = list(pool.map(lambda process: process.communicate()[1], both))
    assert [process.returncode for process in both] == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert [text.count("rm: done in") for text in said] == [1, 0]
    models.load(run / "reward_model")


def test_parts_of_another_number_of_ranks_are_refused(tmp_path):
    (tmp_path / "whole").write_text("4\n")
    with pytest.raises(UserError, match="written by 4 ranks of DeepSpeed, but now there are 2"):
        refuse_other_world(tmp_path, 2)
    refuse_other_world(tmp_path, 4)
