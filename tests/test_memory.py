"""Freed heap: kept for the next tensor where that is asked, and given back on demand."""

import json
import subprocess
import sys

import pytest

from psychepass.memory import _LIBC

PROGRAM = """
import json, resource, statistics
import torch
from psychepass.memory import MIB, give_back, keep_freed

torch.set_num_threads(1)
one = torch.ones(10 * MIB)  # 40 MiB: above the 32 MiB that glibc's own, moving threshold can reach

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [one * 2 for _ in range(3)]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def usual(rounds=9):  # a median: once in a while the heap grows by a tensor, as its free places happen to lie
    return statistics.median(faults() for _ in range(rounds))

def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() / MIB

cleared = usual()
keep_freed()
faults()
kept = usual()
before = resident()
give_back()
print(json.dumps({"cleared": cleared, "kept": kept, "given_back_mib": before - resident()}))
"""


@pytest.mark.skipif(_LIBC is None, reason="this C library has no malloc_trim")
def test_freed_heap_is_kept_for_the_next_tensors_until_it_is_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["cleared"] >= 3 * 20  # every page of every tensor, be they pages of 4 kiB or of 2 MiB
    assert found["kept"] <= found["cleared"] / 20
    assert found["given_back_mib"] > 80
