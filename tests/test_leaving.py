"""A launcher's process keeps its exit status, whatever threads of torch's are still at work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# A thread waits in C++ without the interpreter's lock and wants it back while the interpreter is being finalized,
# which an object's __del__ draws out.
PROGRAM = """
import atexit, datetime, sys, threading, time
from torch.distributed import HashStore
from psychepass.leaving import leave_with

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(1.5)

def work():
    kept.append(Slow())
    wait = lambda: HashStore().wait(["never"], datetime.timedelta(seconds=0.5))
    threading.Thread(target=wait, daemon=True).start()
    atexit.register(print, "handler")
    print("work", end=" ")
    return {work}

kept = []
leave_with(work)
"""


@pytest.mark.parametrize(("work", "code"), [("0", 0), ("2", 2), ("1 / 0", 1)])
def test_a_rank_ends_with_its_status_after_the_exit_handlers(work, code):
    command = [sys.executable, "-c", PROGRAM.replace("{work}", work)]
    env = os.environ | {"LOCAL_RANK": "0"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "work handler\n"), done.stderr
    assert ("ZeroDivisionError" in done.stderr) == (code == 1)
