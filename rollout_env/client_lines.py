"""An LLM client's next line: asked for, checked against the script, asked for once more, journalled.

Each draft is on disk before anything else of its session is asked. A line that leaves its script in both drafts is
spoken all the same, and counted: the one with fewer violations, the later of equals. A session whose client twice
says nothing readable, or what is withheld (adherence.WITHHELD_KINDS), ends as a Failure.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from types import TracebackType

from psychepass.endpoint import Endpoint
from psychepass.left_open import LeftOpen
from psychepass.llm import BudgetSpent, ChatClient, Ledger, Refused, Transport, Unreadable
from psychepass.schema import ClientLine, content_hash
from rollout_env.adherence import UNREADABLE, WITHHELD_KINDS
from rollout_env.asking import GroupedAppends, ask_fitting, check_all
from rollout_env.client import LLMClient
from rollout_env.open_session import OpenSession, SessionFiles, standing

WITHHELD = "what was said is withheld"


class ClientVoice:
    """Every client that one endpoint plays."""

    def __init__(self, chat: ChatClient, files: SessionFiles):
        assert files.lines is not None, "files of an LLM client"
        self.chat = chat
        self._drafts, self._failures = GroupedAppends(files.lines), GroupedAppends(files.failures)
        self._cut: dict[str, int] = {}  # exchanges that a session's prompts leave out by now

    async def speak(self, session: OpenSession) -> bool:
        """The client's next line is on disk; False where there is none, and the session has ended as a Failure.

        Raises as `psychepass.llm.ChatClient.chat`, Unreadable aside.
        """
        while not session.settled:
            draft = await self._draft(session)
            await self._drafts.append(draft)
            session.hear(draft)
        if session.line is None:
            kinds = ", then ".join(f"{d.violations[0]} ({d.detail})" for d in session.drafts)
            await self._failures.append(session.failure("no client line, twice", detail=kinds))
            return False
        return True

    async def _draft(self, session: OpenSession) -> ClientLine:
        client, turn, earlier = session.plan.client, session.turn, session.drafts
        assert isinstance(client, LLMClient)
        seed = [client.identity.seed, session.plan.seed, client.profile.profile_id, turn, len(earlier), "client"]
        history = [(t.client, t.therapist) for t in session.turns]
        key = session.plan.key
        about = f"session {key} turn {turn} client"
        given = {"session_key": key, "turn": turn, "attempt": len(earlier)}
        try:
            reply, cut, refused = await ask_fitting(
                self.chat,
                lambda cut: client.messages(turn, history[cut:], earlier),
                *(len(history), self._cut.get(key, 0), client.sampling, int(content_hash(seed), 16) >> 1, about),
            )
        except Unreadable as e:
            return ClientLine(**given, text="", violations=(UNREADABLE,), detail=e.reason, usage=e.usage)
        self._cut[key] = cut
        kinds, usage = client.violations(turn, reply.text, reply.cut_off), refused + reply.usage
        if withheld := tuple(kind for kind in kinds if kind in WITHHELD_KINDS):
            return ClientLine(**given, text="", violations=withheld, detail=WITHHELD, usage=usage)
        return ClientLine(**given, text=reply.text, violations=kinds, usage=usage)


class BatchVoice:
    """The same for sessions whose therapists answer in one batch: first every client speaks, then the batch answers.

    `left_open` grows by the sessions that wait for the next run.
    """

    def __init__(self, endpoint: Endpoint, files: SessionFiles, ledger: Ledger, left_open: LeftOpen):
        self._left_open = left_open
        self._runner = asyncio.Runner()
        self._chat = ChatClient(endpoint, ledger)
        self._voice = ClientVoice(self._chat, files)

    def __enter__(self) -> BatchVoice:
        """Raises UserError where key, address or model are wrong."""
        try:
            self._runner.run(check_all([self._chat]))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._runner.run(self._chat.__aexit__())
        self._runner.close()

    def speak(self, sessions: Sequence[OpenSession]) -> list[OpenSession]:
        """Those whose client has said its line."""
        return self._runner.run(self._speak(sessions))

    async def _speak(self, sessions: Sequence[OpenSession]) -> list[OpenSession]:
        spoke = await asyncio.gather(*(self._one(s) for s in sessions))
        return [s for s, done in zip(sessions, spoke, strict=True) if done]

    async def _one(self, session: OpenSession) -> bool:
        try:
            return await self._voice.speak(session)
        except (Transport, Refused, BudgetSpent) as e:
            self._left_open.add(e, self._chat.endpoint)
            return False


def adherence_line(lines: Iterable[ClientLine]) -> str:
    """How the clients' lines kept to their scripts, for the person who watches."""
    found = adherence(lines)
    kinds = ", ".join(f"{kind} {n}" for kind, n in found.items() if kind != "lines")
    return f"LLM client: {found['lines']} lines; {kinds or 'no violation'}"


def adherence(lines: Iterable[ClientLine]) -> dict[str, int]:
    """`lines` (turns with a line that stands), `retried` and `off script` (of these), and each kind's number.

    A turn without a readable line counts under the kinds of its last draft.
    """
    turns: dict[tuple[str, int], list[ClientLine]] = {}
    for line in lines:
        turns.setdefault((line.session_key, line.turn), []).append(line)
    stood = [standing(drafts) for drafts in turns.values()]
    counts = Counter(lines=sum(line is not None for line in stood))
    counts["retried"] = sum(len(drafts) > 1 for drafts in turns.values())
    counts["off script"] = sum(bool(line and line.violations) for line in stood)
    for line, drafts in zip(stood, turns.values(), strict=True):
        counts.update((line or drafts[-1]).violations)
    return {k: n for k, n in counts.items() if n or k == "lines"}
