"""The queue of the scorer service: one thread scores what waits, the oldest group and all that share its trunk.

Nothing waits for company: while a tree is scored, others arrive, and the next tree takes what fits of them. What
cannot share a trunk is scored in the order it came, since putting different conversations into one pass saves no
work and lets the first wait for the last.
"""

from __future__ import annotations

import math
import os
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import torch

from psychepass.schema import Dimension, Message
from psychepass.scoring import ScoreGroup
from reward_model.joining import Rendered, joinable

if TYPE_CHECKING:
    from reward_model.scorer import GroupScorer

Rewards = list[list[float]]  # [response][dimension]
PROBE = ScoreGroup(
    context=(Message(role="user", content="Hello."),), responses=("Hello.",), dimensions=(Dimension.EMPATHY,)
)


class Overloaded(Exception):
    """As many groups wait as may; in `retry_s` about half of them will be done."""

    def __init__(self, waiting: int, retry_s: int):
        super().__init__(f"{waiting} groups are waiting; send this request again in {retry_s} s")
        self.retry_s = retry_s


class _Waiting(NamedTuple):
    group: Rendered
    done: Future[Rewards]


class Batcher:
    """Scores groups for many callers. At most `max_waiting` wait; a request to an empty queue is always taken."""

    def __init__(self, scorer: GroupScorer, max_waiting: int):
        self.scorer, self.max_waiting = scorer, max_waiting
        self._queue: list[_Waiting] = []
        self._changed = threading.Condition()
        self._rendering = threading.Lock()
        self._pass_begun: float | None = None
        self._pass_s = 0.0  # a group's share of a pass, smoothed
        self._closed = False
        self._probe = scorer.render(PROBE)
        self._thread = threading.Thread(target=self._work, name="scorer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def busy_s(self) -> float:
        """Seconds that the pass under way has taken; 0 between passes."""
        begun = self._pass_begun
        return 0.0 if begun is None else time.monotonic() - begun

    def submit(self, groups: Sequence[ScoreGroup]) -> list[Future[Rewards]]:
        """A future for each group; nothing is queued where one of them is refused.

        Raises:
            UserError: as GroupScorer.score.
            Overloaded: too many groups wait already.
        """
        self._refuse_overload(len(groups))
        with self._rendering:
            rendered = [self.scorer.render(g) for g in groups]
        with self._changed:
            self._refuse_overload(len(groups))
            return self._append(rendered)

    def probe(self) -> Future[Rewards]:
        """A tiny group, whatever the load: does the model still answer?"""
        with self._changed:
            return self._append([self._probe])[0]

    def close(self) -> None:
        """Ends the thread after the tree under way; what waits is given up."""
        with self._changed:
            self._closed = True
            left, self._queue = self._queue, []
            self._changed.notify()
        for item in left:
            item.done.cancel()
        self._thread.join()

    def _append(self, rendered: Sequence[Rendered]) -> list[Future[Rewards]]:
        items = [_Waiting(group, Future()) for group in rendered]
        self._queue += items
        self._changed.notify()
        return [item.done for item in items]

    def _refuse_overload(self, more: int) -> None:
        if self._queue and len(self._queue) + more > self.max_waiting:
            raise Overloaded(len(self._queue), max(1, math.ceil(len(self._queue) * self._pass_s / 2)))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                numbers = set(joinable([w.group for w in self._queue], self.scorer.renderer.max_tokens))
                taken = [w for n, w in enumerate(self._queue) if n in numbers]
                self._queue = [w for n, w in enumerate(self._queue) if n not in numbers]
                taken = [w for w in taken if w.done.set_running_or_notify_cancel()]  # whoever asked may have left
                self._pass_begun = time.monotonic()
            found = self._score(taken) if taken else []
            share_s = self.busy_s / max(1, len(taken))
            self._pass_s = share_s if self._pass_s == 0 else 0.8 * self._pass_s + 0.2 * share_s
            self._pass_begun = None  # before anybody hears of it: who asks for the health next finds no pass under way
            for waiting, outcome in zip(taken, found, strict=True):
                if isinstance(outcome, Exception):
                    waiting.done.set_exception(outcome)
                else:
                    waiting.done.set_result(outcome)

    def _score(self, taken: Sequence[_Waiting]) -> Sequence[Rewards | Exception]:
        try:
            return self.scorer.score_tree([w.group for w in taken])
        except torch.AcceleratorError:  # stays until the process ends; serve.py's keeper starts another one
            traceback.print_exc()
            os._exit(1)
        except Exception as e:  # a fault reaches only the group that has it
            return [e] if len(taken) == 1 else [found for one in taken for found in self._score([one])]
