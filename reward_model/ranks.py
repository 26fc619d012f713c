"""A step over the processes of a launcher (torchrun, deepspeed): windows dealt out, rewards put together again.

Every rank draws the same step and computes the same loss; a rank encodes its own windows alone. All ranks make
the same number of forwards and backwards, because DDP and ZeRO-3 wait for each other in each of them: a rank
with fewer windows fills up with padding of weight zero.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from psychepass import records
from psychepass.errors import UserError
from reward_model.packing import Branch, Packed, pack


def rank_and_world() -> tuple[int, int]:
    """This process's rank and how many the launcher started; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def deal(tokens: Sequence[int], world: int) -> list[list[int]]:
    """The windows (indices into `tokens`) of each rank: longest first, each to the rank with the fewest tokens.

    A rank's windows come longest first, so that the ranks wait little for each other.
    """
    hands: list[list[int]] = [[] for _ in range(world)]
    load = [0] * world
    for window in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        rank = min(range(world), key=lambda r: (load[r], r))
        hands[rank].append(window)
        load[rank] += tokens[window]
    return hands


def hand_of(trees: Sequence[Packed], rank: int, world: int) -> list[int | None]:
    """Indices of this rank's trees, then None for each padding; one process keeps the step's own order."""
    if world == 1:
        return list(range(len(trees)))
    hands = deal([t.tokens for t in trees], world)
    return hands[rank] + [None] * (max(map(len, hands)) - len(hands[rank]))


def padding() -> Packed:
    """The smallest tree: its reward counts for nothing, its forward keeps the ranks in step."""
    return pack((0,), [Branch((0,), attach=1)])


def score_slices(trees: Sequence[Packed]) -> list[slice]:
    """Where each tree's rewards stand among the step's S rewards."""
    slices, done = [], 0
    for tree in trees:
        slices.append(slice(done, done + len(tree.score_index_S)))
        done = slices[-1].stop
    return slices


def gather(rewards_S: torch.Tensor) -> torch.Tensor:
    """All ranks' rewards, each rank having filled in its own and left zeros; no number is rounded by the sum."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(rewards_S)
    return rewards_S


# --- the launcher's surroundings ---------------------------------------------------------------


def prepare_cpu_ranks() -> None:
    """Without a GPU accelerate names the device cpu:0, where torch cannot load a checkpoint to: call it cpu."""
    if rank_and_world()[1] > 1 and not torch.cuda.is_available():
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


def deepspeed_config(path: str, bf16: bool) -> dict[str, Any]:
    """The DeepSpeed JSON at `path`, completed by what the stage decides, and the process group where there is no GPU.

    bf16 is torch's autocast inside DeepSpeed: weights, head and loss stay fp32 in each rank's part, and linear
    weights travel and multiply in bf16. DeepSpeed's own bf16 mode would round the head too.

    Raises:
        UserError: no such file or no JSON, no launcher, DeepSpeed is not installed, a stage other than 3, or values
            in it that the stage decides.
    """
    if not Path(path).is_file():
        raise UserError(f"deepspeed = {path}: no such file; permitted: a DeepSpeed JSON, or null")
    if "LOCAL_RANK" not in os.environ:
        raise UserError(f"deepspeed = {path} needs a launcher, even for one process: start it with launch/rm.sh")
    config = records.read_json(path)
    _refuse_values(config, path)
    cpu = not torch.cuda.is_available()
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        deepspeed = importlib.import_module("deepspeed")
    except ImportError as e:
        raise UserError(f"deepspeed = {path}, but DeepSpeed is not installed ({e}); see README, On GPUs") from e
    # torch 2.13 renames what DeepSpeed 0.19 calls, and would say so in every forward
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
    config["torch_autocast"] = {"enabled": bf16, "dtype": "bfloat16"}
    config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True  # for the model that is saved
    if cpu:
        config["zero_optimization"]["overlap_comm"] = False  # there are no streams to overlap on
        _prepare_cpu_deepspeed(deepspeed)
    return config


def _refuse_values(config: dict[str, Any], path: str) -> None:
    zero = config.get("zero_optimization", {})
    if zero.get("stage") != 3:
        raise UserError(f"{path}: zero_optimization.stage must be 3; without sharding set deepspeed to null")
    for key in ("optimizer", "scheduler"):
        if key in config:
            raise UserError(
                f"{path}: {key} is set, but stage rm makes its own from learning_rate and its like; delete it"
            )
    for key, value in zero.items():
        if value == "auto":  # transformers would take it from a config that a reward model does not have
            raise UserError(f"{path}: zero_optimization.{key} is 'auto'; permitted: a number, as in configs/zero3.json")


def _prepare_cpu_deepspeed(deepspeed: Any) -> None:
    """accelerate starts DeepSpeed on gloo only if told so, before the Trainer looks."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    # its shared-memory operator would be compiled for minutes, and a killed build leaves a lock behind
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    from accelerate import PartialState

    PartialState(backend="gloo")
