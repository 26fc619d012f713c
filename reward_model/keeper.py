"""Keeps a service in service: it runs in a child process, and a child that dies is replaced.

A run of a week should not end because the kernel ended a process for its memory or a GPU met an error. The keeper
holds the listening socket, so that the address stays and callers wait while the next child loads its model.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from psychepass.errors import UserError
from psychepass.run import say

DEATHS, WITHIN_S = 5, 600.0
STOP_S = 10.0
READY = "ready"


def keep(name: str, work: Callable[[Callable[[], None]], None]) -> None:
    """Run `work(ready)` in a child, again and again; returns never. It calls ready() once it serves.

    The process must have no threads and no GPU when it calls: the child is a fork. The child ends with this
    process, also where that is killed.

    Raises:
        UserError: what `work` raised, a death before ready(), or the fifth death within ten minutes.
    """
    deaths: deque[float] = deque(maxlen=DEATHS)
    while True:
        child, said = _start(work)
        try:
            word = _word(said)
            if word not in (READY, ""):
                raise UserError(word)
            child.join()
        finally:
            _stop(child)
        how = f"process {child.pid} ended with {child.exitcode}"
        if word != READY:
            raise UserError(f"{how} before it was ready; its last words are above")
        deaths.append(time.monotonic())
        if len(deaths) == DEATHS and deaths[-1] - deaths[0] < WITHIN_S:
            raise UserError(f"{how}, the {DEATHS}th time within {WITHIN_S / 60:g} minutes; its last words are above")
        say(f"{name}: {how}; starting another")


def _start(work: Callable[[Callable[[], None]], None]) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("fork")
    said, telling = context.Pipe(duplex=False)
    child = context.Process(target=_live, args=(work, telling))
    child.start()
    telling.close()
    return child, said


def _live(work: Callable[[Callable[[], None]], None], telling: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(lambda: telling.send(READY))
    except UserError as e:
        telling.send(str(e))
    except KeyboardInterrupt:  # Ctrl-C reaches both processes; the keeper says so
        pass


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _word(said: Connection) -> str:
    """The child's first word; empty where it died without one."""
    try:
        return said.recv()
    except EOFError:
        return ""
    finally:
        said.close()


def _stop(child: Any) -> None:
    child.terminate()
    child.join(STOP_S)
    child.kill()
    child.join()
