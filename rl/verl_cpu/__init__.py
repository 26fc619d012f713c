"""verl without a GPU: a platform, an FSDP2 engine and a rollout server for ordinary processors.

verl imports this package in every process (VERL_USE_EXTERNAL_MODULES, VERL_PLATFORM=cpu), so
the heavy parts are named here and loaded where they are used. engine.py is loaded in the training workers
by verl's `external_lib`.
"""

from __future__ import annotations

from typing import Any

import verl.utils.distributed as distributed
from verl.workers.rollout import base, replica

from rl.verl_cpu import platform as platform  # registers itself

_start = distributed.initialize_global_process_group_ray


def _start_gloo(timeout_second: int | None = None, backend: str | None = None) -> None:
    """verl asks for `cpu:gloo,<device>:<backend>`, which torch refuses when the device is the CPU too."""
    _start(timeout_second, "cpu:gloo")


def _replica() -> Any:
    from rl.verl_cpu.rollout import CPUReplica

    return CPUReplica


distributed.initialize_global_process_group_ray = _start_gloo
replica.RolloutReplicaRegistry.register("hf_cpu", _replica)
base._ROLLOUT_REGISTRY[("hf_cpu", "async")] = "rl.verl_cpu.rollout.CPUAdapter"
