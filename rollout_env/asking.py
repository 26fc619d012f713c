"""What therapists and clients behind endpoints share: the check beforehand, a prompt that fits the context, records
written at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from psychepass.errors import Unreachable
from psychepass.llm import ChatClient, ContextOverflow, Refused, Reply, Transport
from psychepass.records import Appender
from psychepass.run import say
from psychepass.schema import Message, Record, Sampling, Usage
from rollout_env.therapist import CUT_TURNS

Shown = Callable[[int], Sequence[Message]]  # the prompt without its first exchanges, as many as are given


async def check_all(chats: Collection[ChatClient]) -> None:
    """Ask each endpoint for its models. Once the stage's ledger holds a call, one at which nobody answers now is closed
    for this run: what it would be asked is left open, and the others go on.

    Raises:
        UserError: a key or a model is wrong; or nobody answers, and no call was made yet.
    """
    found = await asyncio.gather(*(chat.check() for chat in chats), return_exceptions=True)
    for chat, error in zip(chats, found, strict=True):
        if error is None:
            continue
        if not (isinstance(error, Unreachable) and chat.ledger.path.stat().st_size):
            raise error
        chat.closed = Transport("cannot be reached")
        say(f"{error}; what it would be asked waits for the next call of the stage")


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


async def ask_fitting(
    chat: ChatClient, shown: Shown, exchanges: int, cut: int, sampling: Sampling, seed: int, about: str
) -> tuple[Reply, int, Usage]:
    """The reply, the exchanges left out, and what the tries cost that were too long.

    Args:
        exchanges: how many there are; the oldest are left out in blocks once the whole is too long for the model.
        cut: how many an earlier turn left out.

    Raises:
        Refused: a prompt without any history is too long; the endpoint stays closed.
    """
    usage = Usage()
    while True:
        try:
            return await chat.chat(shown(cut), sampling, seed=seed, about=about), cut, usage
        except ContextOverflow as e:
            if cut >= exchanges:
                chat.closed = Refused(
                    f"{chat.endpoint.name}: {about}: a prompt without any history and a reply of up to "
                    f"{sampling.max_tokens} tokens exceed the model's context: {e.detail}"
                )
                raise chat.closed from e
            usage += e.usage
            cut = min(cut + CUT_TURNS, exchanges)
