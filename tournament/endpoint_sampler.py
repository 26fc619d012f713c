"""A policy behind an endpoint answers prompts anew, as tournament/sampler.py has local weights and rules do it.

Every reply is on disk before it is scored, so a kill loses the calls in flight and nothing answered is asked again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field
from tqdm import tqdm

from psychepass import records
from psychepass.dry_run import Planned
from psychepass.endpoint import prompt_tokens
from psychepass.ledger import Ledger
from psychepass.left_open import LeftOpen
from psychepass.llm import BudgetSpent, ChatClient, Refused, Transport, Unreadable
from psychepass.schema import Record, Sampling, Usage
from rollout_env.asking import GroupedAppends, ask_fitting, check_all
from rollout_env.endpoint_sessions import permit_sockets
from rollout_env.therapist import TherapistEntry, chat_messages, system_prompt
from tournament.paired_rewards import Prompt
from tournament.sampler import conversation

TRIES = 2  # as in a session: what was unreadable is drawn once more with another seed


class PromptReply(Record):
    """A line of heldout/replies.jsonl: what came of one try at one sample; `text` is empty where `fault` says why."""

    KEY_FIELDS = ("policy", "weights", "session", "turn", "sample", "attempt")

    policy: str
    weights: str
    session: str
    turn: int
    sample: int
    attempt: int = Field(ge=0, lt=TRIES)
    text: str
    fault: str = ""
    usage: Usage = Usage()


Sample = tuple[str, int, int]  # session, turn, number of the sample


class EndpointSampler:
    """`samples` replies of the policy to each prompt. `path`: replies.jsonl; replies of other policies stay there."""

    def __init__(self, entry: TherapistEntry, target_words: int, sampling: Sampling, samples: int, path: Path):
        assert entry.endpoint and entry.prompt, "a policy behind an endpoint"
        self.entry, self.endpoint, self.samples, self.path = entry, entry.endpoint, samples, path
        self.sampling = entry.sampling or sampling
        self.system = system_prompt(entry.prompt, target_words)
        self._said: dict[Sample, list[PromptReply]] = defaultdict(list)
        for reply in sorted(records.peek(path, PromptReply), key=lambda r: r.attempt):
            if (reply.policy, reply.weights) == (entry.name, self.endpoint.identity):
                self._said[reply.session, reply.turn, reply.sample].append(reply)

    def answer(self, prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
        """What is there: fewer than `samples` where some stayed unreadable. `ask` comes first."""
        return [
            tuple(said[-1].text for i in range(self.samples) if (said := self._of(p, i)) and said[-1].text)
            for p in prompts
        ]

    def missing(self, prompts: Iterable[Prompt]) -> list[tuple[Prompt, int]]:
        return [(p, i) for p in prompts for i in range(self.samples) if not _is_final(self._of(p, i))]

    def ask(self, prompts: Sequence[Prompt], ledger: Path, budget_usd: float | None) -> None:
        """Ask for what is missing, as many at once as the endpoint takes.

        Raises:
            UserError: key, address or model are wrong; or replies are left for the next run
                (Unfinished, if the endpoint gave none).
        """
        missing = self.missing(prompts)
        if not missing:
            return
        with (
            Ledger(ledger, budget_usd) as calls,
            records.Appender(self.path, PromptReply) as file,
            tqdm(total=len(missing), desc=f"replies of {self.entry.name}", unit="reply") as bar,
        ):
            left_open = asyncio.run(self._ask_all(missing, calls, file, bar))
        if n := left_open.total():
            what = f"{n} of {len(missing)} replies of {self.entry.name} could not be had"
            raise left_open.error(what, "what was said")

    async def _ask_all(
        self, missing: Sequence[tuple[Prompt, int]], calls: Ledger, file: records.Appender, bar: tqdm
    ) -> LeftOpen:
        permit_sockets(self.endpoint.max_concurrent)
        journal, left_open = GroupedAppends(file), LeftOpen()
        slots = asyncio.Semaphore(self.endpoint.max_concurrent)  # no more prompts are made than can be sent
        async with ChatClient(self.endpoint, calls) as chat:
            await check_all([chat])

            async def one(prompt: Prompt, sample: int) -> None:
                async with slots:
                    try:
                        await self._ask(chat, prompt, sample, journal)
                        bar.update()
                    except (Transport, Refused, BudgetSpent) as e:
                        left_open.add(e, self.endpoint)

            await asyncio.gather(*(one(p, i) for p, i in missing))
        return left_open

    async def _ask(self, chat: ChatClient, prompt: Prompt, sample: int, journal: GroupedAppends) -> None:
        said = self._said[prompt.session, prompt.turn, sample]
        while not _is_final(said):
            asked = conversation(self.entry, self.system, self.sampling, prompt, sample, len(said))
            text, fault = "", ""
            try:
                reply, _, usage = await ask_fitting(
                    chat,
                    lambda cut, asked=asked: chat_messages(asked.system, asked.history[cut:], asked.client),
                    *(len(asked.history), 0, asked.sampling, asked.seed, f"reply {asked.key}"),
                )
                text, usage = reply.text, usage + reply.usage
            except Unreadable as e:
                fault, usage = e.reason, e.usage
            made = PromptReply(
                policy=self.entry.name,
                weights=self.endpoint.identity,
                session=prompt.session,
                turn=prompt.turn,
                sample=sample,
                attempt=len(said),
                text=text,
                fault=fault,
                usage=usage,
            )
            await journal.append(made)
            said.append(made)

    def planned(self, prompts: Sequence[Prompt], most: Sequence[Prompt], reply_tokens: int) -> Planned:
        """The calls that are missing; `most` are the same prompts as long as they can be."""
        left = Counter((p.session, p.turn) for p, _ in self.missing(prompts))
        sums = [0] * 5
        for prompt, longest in zip(prompts, most, strict=True):
            calls = left[prompt.session, prompt.turn]
            sizes = (1, self._tokens(prompt), reply_tokens, self._tokens(longest), self.sampling.max_tokens)
            sums = [total + calls * size for total, size in zip(sums, sizes, strict=True)]
        return Planned(f"{self.endpoint.name} (replies for rewards)", self.endpoint.price, *sums)

    def _of(self, prompt: Prompt, sample: int) -> list[PromptReply]:
        return self._said.get((prompt.session, prompt.turn, sample), [])

    def _tokens(self, prompt: Prompt) -> int:
        asked = conversation(self.entry, self.system, self.sampling, prompt, 0, 0)
        return prompt_tokens(chat_messages(asked.system, asked.history, asked.client))


def _is_final(said: Sequence[PromptReply]) -> bool:
    return bool(said) and (not said[-1].fault or len(said) == TRIES)
