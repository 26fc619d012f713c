"""Matches before judges behind endpoints: many at once, each reply on disk before anything rests on it.

A judgement that takes long, or runs into its time-out again and again, holds up the next wave of its own line and no
other (tournament/play.py). All lines share the limits of the endpoints.

judge_replies.jsonl holds what each judge said; battles and failures follow from it without another call. So a kill
loses the calls in flight and nothing else, and what was answered, readable or not, is never asked again. What got no
answer leaves its match for the next run.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from tqdm import tqdm

from psychepass import records
from psychepass.endpoint import Endpoint
from psychepass.left_open import LeftOpen
from psychepass.llm import BudgetSpent, ChatClient, Ledger, Refused, Transport
from psychepass.schema import Session
from rollout_env.asking import GroupedAppends, check_all
from rollout_env.endpoint_sessions import permit_sockets
from tournament.journal import Journal
from tournament.judge import Outcome, subject
from tournament.llm_judge import JudgeReply, LLMJudge, is_final
from tournament.panel import Panel
from tournament.play import Line, Match

REPLIES, LEDGER = "judge_replies.jsonl", "ledger_tournament.jsonl"
NOT_HAD = "judgements could not be had"  # why matches are left to judge
Heard = dict[str, dict[str, list[JudgeReply]]]  # presentation (judge.subject) -> judge's name -> its replies


def by_presentation(replies: Iterable[JudgeReply]) -> Heard:
    """Replies in the order of their attempts."""
    heard: Heard = defaultdict(lambda: defaultdict(list))
    for reply in sorted(replies, key=lambda r: r.attempt):
        heard[subject(reply.session_a, reply.session_b)][reply.judge.name].append(reply)
    return heard


class EndpointMatches:
    """A `play.Hold` over endpoints. `left_open`: why judgements could not be had in this run, and how many.

        with EndpointMatches(panel, journal, ledger, folder) as matches:
            left = play(entered, matches.hold, seed)

    Entering asks each endpoint for its models (rollout_env.asking.check_all).

    Raises:
        UserError: on entering: a key, an address or a model is wrong, or there are replies of another judge; no call
            was made.
    """

    def __init__(self, panel: Panel, journal: Journal, ledger: Ledger, folder: Path):
        self.panel, self.journal, self.ledger = panel, journal, ledger
        self.path, self.left_open = folder / REPLIES, LeftOpen()
        self._clients: dict[str, ChatClient] = {}  # by endpoint: equal endpoints share their limits
        self._slots: dict[str, asyncio.Semaphore] = {}

    def __enter__(self) -> EndpointMatches:
        self._runner, self._stack = asyncio.Runner(), AsyncExitStack()
        try:
            self._runner.run(self._open())
            self._file = records.Appender(self.path, JudgeReply)
            self._heard = by_presentation(self.panel.own(self._file.done.values(), self.path))
        except BaseException:
            self._close()
            raise
        self._replies = GroupedAppends(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__()
        self._close()

    async def _open(self) -> None:
        endpoints: dict[str, Endpoint] = {repr(j.entry.endpoint): j.entry.endpoint for j in self.panel.judges}
        permit_sockets(sum(e.max_concurrent for e in endpoints.values()))
        for key, endpoint in endpoints.items():
            self._clients[key] = await self._stack.enter_async_context(ChatClient(endpoint, self.ledger))
            self._slots[key] = asyncio.Semaphore(endpoint.max_concurrent)
        await check_all(self._clients.values())

    def _close(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def hold(self, lines: Sequence[Line], bar: tqdm) -> None:
        self._runner.run(self._hold(lines, bar.update))

    async def _hold(self, lines: Sequence[Line], done: Callable[[], object]) -> None:
        await asyncio.gather(*(self._line(line, done) for line in lines))

    async def _line(self, line: Line, done: Callable[[], object]) -> None:
        for wave in line:
            wave.held = await asyncio.gather(*(self._match(met, done) for met in wave.matches))
            await asyncio.to_thread(self.journal.sync)  # on a shared file system this takes a while

    async def _match(self, met: Match, done: Callable[[], object]) -> list[Outcome] | None:
        orders = ((met.a, met.b), (met.b, met.a))
        outcomes = await asyncio.gather(*(self._presentation(a, b, met.round) for a, b in orders))
        judged = [o for o in outcomes if o is not None]
        if len(judged) < len(outcomes):
            return None
        done()
        return judged

    async def _presentation(self, a: Session, b: Session, round: int) -> Outcome | None:
        """Each judge's verdict on it, asked where it is not there yet; None where one could not be had now."""
        name = subject(a.id, b.id)
        if name in self.journal.known:
            return self.journal.known[name]
        said = self._heard[name]
        await asyncio.gather(*(self._judgement(judge, a, b, said[judge.entry.name]) for judge in self.panel.judges))
        outcome = self.panel.outcome(a, b, round, said)
        if outcome is not None:
            self.journal.append([outcome], sync=False)
        del self._heard[name]
        return outcome

    async def _judgement(self, judge: LLMJudge, a: Session, b: Session, said: list[JudgeReply]) -> None:
        """Ask one judge until nothing more is to be asked; `said` grows, and a reply is on disk before it counts."""
        key = repr(judge.entry.endpoint)
        while not is_final(said):
            async with self._slots[key]:  # no more prompts are made than can be sent
                try:
                    reply = await judge.ask(self._clients[key], a, b, said)
                except (Transport, Refused, BudgetSpent) as e:
                    self.left_open.add(e, judge.entry.endpoint)
                    return
            await self._replies.append(reply)
            said.append(reply)
