"""LoRA's first weights by the run's seed.

verl draws them from whatever state its worker's generator has, so that two runs of one seed differ from their first
update on; on GPUs its own switch (`full_determinism`) would slow down every kernel too. Named by verl's
`external_lib`, so that each training worker loads it.
"""

from __future__ import annotations

from typing import Any

import torch
from verl.workers.engine.fsdp import transformer_impl

FSDP: Any = transformer_impl.FSDPEngine  # verl's decorators hide the types
_build = FSDP._build_lora_module


def _build_seeded(self: Any, module: Any) -> Any:
    torch.manual_seed(self.engine_config.seed)
    return _build(self, module)


FSDP._build_lora_module = _build_seeded
