"""Sessions whose therapist is behind an endpoint: many open at once, each at its own pace.

An endpoint has as many sessions open as it takes calls at once. A reply is on disk before the next one of its
session is asked for, so a kill loses the calls in flight and nothing else. A session that gets no answer stays
open for the next run; one that twice gets an unreadable answer to the same turn ends as a Failure.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack

from tqdm import tqdm

from psychepass.endpoint import Endpoint
from psychepass.llm import BudgetSpent, ChatClient, ContextOverflow, Ledger, Refused, Reply, Transport, Unreadable
from psychepass.records import Appender
from psychepass.schema import Record, Usage
from rollout_env.open_session import OpenSession, SessionFiles
from rollout_env.therapist import CUT_TURNS, Answer, Conversation, chat_messages

OTHER_FILES = 256


def hold_over_endpoints(
    groups: Sequence[tuple[Endpoint, list[OpenSession]]], files: SessionFiles, ledger: Ledger, bar: tqdm
) -> Counter[str]:
    """Hold every session that can be held now; returns why others were left open, with their number.

    Raises:
        UserError: a key, an address or a model is wrong; no call was made.
    """
    return asyncio.run(_hold(groups, files, ledger, bar))


async def _hold(
    groups: Sequence[tuple[Endpoint, list[OpenSession]]], files: SessionFiles, ledger: Ledger, bar: tqdm
) -> Counter[str]:
    permit_sockets(sum(endpoint.max_concurrent for endpoint, _ in groups))
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(ChatClient(endpoint, ledger)) for endpoint, _ in groups]
        await asyncio.gather(*(client.check() for client in clients))
        rooms = [_Room(client, sessions, files, bar) for client, (_, sessions) in zip(clients, groups, strict=True)]
        await asyncio.gather(*(room.hold() for room in rooms))
    return sum((room.left_open for room in rooms), Counter())


def permit_sockets(n: int) -> None:
    """Raise this process's limit of open files where so many connections would pass it (1,024 is a common one)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n + OTHER_FILES if hard == resource.RLIM_INFINITY else min(n + OTHER_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class GroupedAppends:
    """Each record is written at once; those that arrive during an fsync share the next one, which holds nobody up."""

    def __init__(self, appender: Appender):
        self._appender = appender
        self._written: list[asyncio.Future[None]] = []  # and not synced yet
        self._syncing: asyncio.Task[None] | None = None

    async def append(self, record: Record) -> None:
        """Returns once the record is on disk."""
        self._appender.write(record)
        self._written.append(synced := asyncio.get_running_loop().create_future())
        if self._syncing is None or self._syncing.done():
            self._syncing = asyncio.create_task(self._sync())
        await synced

    async def _sync(self) -> None:
        while self._written:
            batch, self._written = self._written, []
            error: Exception | None = None
            try:
                await asyncio.to_thread(self._appender.sync)
            except Exception as e:  # those that wait must hear of it, whatever it is
                error = e
            for synced in batch:
                if synced.cancelled():
                    continue
                if error:
                    synced.set_exception(error)
                else:
                    synced.set_result(None)


class _Room:
    """The sessions of one endpoint. `left_open`: why sessions were not ended here, and how many."""

    def __init__(self, client: ChatClient, sessions: Sequence[OpenSession], files: SessionFiles, bar: tqdm):
        self.client, self.bar = client, bar
        self.sessions, self.left_open = sessions, Counter[str]()
        self._reasons: dict[str, str] = {}
        self._turns, self._ended = GroupedAppends(files.turns), GroupedAppends(files.sessions)
        self._failures = files.failures

    async def hold(self) -> None:
        queue = iter(self.sessions)
        n_open = min(self.client.endpoint.max_concurrent, len(self.sessions))
        await asyncio.gather(*(self._hold_in_turn(queue) for _ in range(n_open)))

    async def _hold_in_turn(self, queue: Iterator[OpenSession]) -> None:
        for session in queue:
            try:
                await self._hold_one(session)
            except (Transport, Refused, BudgetSpent) as e:
                reason = self._reason(e)
                # where nothing more can be asked, the sessions not begun are left as well
                rest = 0 if isinstance(e, Transport) and not self.client.closed else sum(1 for _ in queue)
                self.left_open[reason] += 1 + rest

    def _reason(self, error: Transport | Refused | BudgetSpent) -> str:
        """The same for errors of one kind, with the details of the first of them."""
        if not isinstance(error, Transport):
            return str(error)
        return self._reasons.setdefault(error.reason, f"{self.client.endpoint.name}: {error}")

    async def _hold_one(self, session: OpenSession) -> None:
        cut = 0  # exchanges left out at the beginning, once the whole is too long for the model
        while not session.complete:
            faults, usage, answer = [], Usage(), None
            for attempt in range(2):
                asked = session.ask(attempt)
                try:
                    reply, cut, refused = await self._ask(asked, len(session.turns) + 1, cut)
                    answer = Answer(reply.text, None, usage + refused + reply.usage)
                    break
                except Unreadable as e:
                    faults.append(e.reason)
                    usage += e.usage
            if answer is None:
                self._failures.append(session.failure("unreadable reply, twice", usage, ", then ".join(faults)))
                return
            await self._turns.append(session.add(answer))
            self.bar.update()
        await self._ended.append(session.session())

    async def _ask(self, asked: Conversation, turn: int, cut: int) -> tuple[Reply, int, Usage]:
        """The reply, the exchanges left out, and what the tries cost that were too long."""
        usage = Usage()
        while True:
            messages = chat_messages(asked.system, asked.history[cut:], asked.client)
            try:
                about = f"session {asked.key} turn {turn}"
                return await self.client.chat(messages, asked.sampling, seed=asked.seed, about=about), cut, usage
            except ContextOverflow as e:
                if cut >= len(asked.history):
                    self.client.closed = Refused(
                        f"{self.client.endpoint.name}: session {asked.key}: a prompt without any history and a reply "
                        f"of up to {asked.sampling.max_tokens} tokens exceed the model's context: {e.detail}"
                    )
                    raise self.client.closed from e
                usage += e.usage
                cut = min(cut + CUT_TURNS, len(asked.history))
