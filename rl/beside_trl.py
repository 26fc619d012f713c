"""Lets verl 0.9.1 run where trl 1.x is installed.

Where verl finds trl, it patches a model class with a value head that trl has dropped, and no worker starts. GRPO has
no value head. verl imports this module in every process (VERL_USE_EXTERNAL_MODULES), before what asks for trl.
"""

from __future__ import annotations

from verl.utils import import_utils


def _no() -> bool:
    return False


import_utils.is_trl_available = _no
