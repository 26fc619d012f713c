"""Sessions whose therapist is behind an endpoint: many open at once, each at its own pace.

An endpoint has as many sessions open as it takes calls at once. A reply is on disk before the next one of its
session is asked for, so a kill loses the calls in flight. A session that gets no answer stays open for the next run;
one that twice gets an unreadable answer to the same turn ends as a Failure. The first of the two stands in the ledger
alone: where the second was cut off or got no answer, the next run asks, and pays, both again.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack

from tqdm import tqdm

from psychepass.endpoint import Endpoint
from psychepass.left_open import LeftOpen
from psychepass.llm import BudgetSpent, ChatClient, Ledger, Refused, Reply, Transport, Unreadable
from psychepass.run import say
from psychepass.schema import Usage
from rollout_env.asking import GroupedAppends, ask_fitting, check_all
from rollout_env.client_lines import ClientVoice
from rollout_env.open_session import OpenSession, SessionFiles
from rollout_env.therapist import Answer, Conversation, chat_messages

OTHER_FILES = 256


def hold_over_endpoints(
    groups: Sequence[tuple[Endpoint, list[OpenSession]]],
    files: SessionFiles,
    ledger: Ledger,
    bar: tqdm,
    played_by: Endpoint | None,
    left_open: LeftOpen,
) -> None:
    """Hold every session that can be held now; `left_open` grows by the others.

    `played_by` plays the clients, if they are not scripted; one that is a therapist too keeps one set of limits.

    Raises:
        UserError: a key, an address or a model is wrong; no call was made (rollout_env.asking.check_all).
    """
    asyncio.run(_hold(groups, files, ledger, bar, played_by, left_open))


async def _hold(
    groups: Sequence[tuple[Endpoint, list[OpenSession]]],
    files: SessionFiles,
    ledger: Ledger,
    bar: tqdm,
    played_by: Endpoint | None,
    left_open: LeftOpen,
) -> None:
    endpoints = {repr(e): e for e in (*(e for e, _ in groups), *([played_by] if played_by else ()))}
    permit_sockets(sum(endpoint.max_concurrent for endpoint in endpoints.values()))
    async with AsyncExitStack() as stack:
        chats = {k: await stack.enter_async_context(ChatClient(e, ledger)) for k, e in endpoints.items()}
        await check_all(chats.values())
        voice = ClientVoice(chats[repr(played_by)], files) if played_by else None
        rooms = [_Room(chats[repr(e)], voice, sessions, files, bar, left_open) for e, sessions in groups]
        await asyncio.gather(*(room.hold() for room in rooms))


def permit_sockets(n: int) -> None:
    """Raise this process's limit of open files where so many connections would pass it (1,024 is a common one).

    Where the system permits fewer, that is said: calls then wait for a connection, which shows as time-outs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n + OTHER_FILES if hard == resource.RLIM_INFINITY else min(n + OTHER_FILES, hard)
    if wanted < n + OTHER_FILES:
        say(
            f"endpoints: {n} calls at once (max_concurrent, of all endpoints together) need {n + OTHER_FILES} open "
            f"files, and this system permits {hard}; what waits for a connection may time out: raise ulimit -Hn, or "
            "lower max_concurrent"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Room:
    """The sessions of one endpoint."""

    def __init__(
        self,
        chat: ChatClient,
        voice: ClientVoice | None,
        sessions: Sequence[OpenSession],
        files: SessionFiles,
        bar: tqdm,
        left_open: LeftOpen,
    ):
        self.chat, self.voice, self.bar = chat, voice, bar
        self.sessions, self.left_open = sessions, left_open
        self._turns, self._ended = GroupedAppends(files.turns), GroupedAppends(files.sessions)
        self._failures = GroupedAppends(files.failures)

    async def hold(self) -> None:
        queue = iter(self.sessions)
        n_open = min(self.chat.endpoint.max_concurrent, len(self.sessions))
        await asyncio.gather(*(self._hold_in_turn(queue) for _ in range(n_open)))

    async def _hold_in_turn(self, queue: Iterator[OpenSession]) -> None:
        for session in queue:
            try:
                await self._hold_one(session)
            except (Transport, Refused, BudgetSpent) as e:
                asked = self.chat if session.line is not None or self.voice is None else self.voice.chat
                # where nothing more can be asked, the sessions not begun are left as well
                rest = 0 if isinstance(e, Transport) and not asked.closed else sum(1 for _ in queue)
                self.left_open.add(e, asked.endpoint, 1 + rest)

    async def _hold_one(self, session: OpenSession) -> None:
        cut = 0  # exchanges left out at the beginning, once the whole is too long for the model
        while not session.complete:
            if self.voice and not await self.voice.speak(session):
                return
            faults, usage, answer = [], Usage(), None
            for attempt in range(2):
                asked = session.ask(attempt)
                try:
                    reply, cut, refused = await self._ask(asked, session.turn, cut)
                    answer = Answer(reply.text, None, usage + refused + reply.usage)
                    break
                except Unreadable as e:
                    faults.append(e.reason)
                    usage += e.usage
            if answer is None:
                await self._failures.append(session.failure("unreadable reply, twice", usage, ", then ".join(faults)))
                return
            await self._turns.append(session.add(answer))
            self.bar.update()
        await self._ended.append(session.session())

    async def _ask(self, asked: Conversation, turn: int, cut: int) -> tuple[Reply, int, Usage]:
        return await ask_fitting(
            self.chat,
            lambda cut: chat_messages(asked.system, asked.history[cut:], asked.client),
            *(len(asked.history), cut, asked.sampling, asked.seed, f"session {asked.key} turn {turn}"),
        )
