"""How a process of a launcher ends: with its exit status, before the interpreter takes itself apart."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def leave_with(work: Callable[[], int]) -> NoReturn:
    """Exit with what `work` returns, 1 where it raises; under torchrun or deepspeed as soon as exit handlers are done.

    A thread of torch's (gloo's, autograd's) may still hold the last reference to a tensor when the interpreter is
    finalized; it then asks for the lock that nobody gets any more, and the process aborts (pytorch issue 190489):
    a training that is whole on disk would be called failed by Slurm. Under ZeRO-3 gloo's threads were still there after
    the process group had been destroyed.
    """
    code = 1

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    if "LOCAL_RANK" in os.environ:
        atexit.register(end)  # handlers run last in, first out: those of W&B and DeepSpeed, registered later, before it
    code = work()
    sys.exit(code)
