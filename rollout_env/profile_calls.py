"""Asks a model for one record an item, many at once: twice where an answer cannot be used, then a Failure.

A record is on disk before its task takes the next item, so a kill loses the calls in flight, and an item's first
unusable answer, which stands in the ledger alone: that item is asked from the start, and paid, again. The same holds
where the second call of an item gets no answer, which leaves it for the next run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from psychepass.endpoint import Endpoint
from psychepass.left_open import LeftOpen
from psychepass.llm import BudgetSpent, ChatClient, Ledger, Refused, Transport, Unreadable
from psychepass.run import say
from psychepass.schema import Failure, Message, Record, Sampling, Usage, content_hash
from rollout_env.asking import GroupedAppends, check_all
from rollout_env.profile_draft import Declined

UNUSABLE = "unusable answer, twice"
AGAIN = {
    "en": "This answer cannot be used: {}. Send the whole JSON object once more, corrected, and nothing else.",
    "zh": "这个回答无法使用：{}。请重新发送改正后的完整 JSON 对象，不要写别的。",
}


@dataclass(frozen=True, slots=True)
class Job:
    """`make` turns the answer and what it cost into a record, or raises ValueError with what is wrong."""

    subject: str
    language: str
    prompt: str
    make: Callable[[str, Usage], Record]


@dataclass(frozen=True, slots=True)
class Asking:
    """Where answers come from and where they go; `step` names the calls and their failures."""

    endpoint: Endpoint
    sampling: Sampling
    seed: int
    step: str
    done: GroupedAppends
    failures: GroupedAppends


def ask_all(jobs: Sequence[Job], asking: Asking, ledger_path: Path, budget_usd: float | None) -> None:
    """Ask for every job whose record is not there.

    Raises:
        UserError: key, address or model are wrong; or, at the end, some were left without an answer (Unfinished, if
            the endpoint gave none).
    """
    if not jobs:
        return
    with Ledger(ledger_path, budget_usd) as ledger, tqdm(total=len(jobs), desc=asking.step, unit="profile") as bar:
        before_usd = ledger.spent_usd
        asyncio.run(_ask_all(jobs, asking, ledger, bar, left := LeftOpen()))
        say(f"{asking.step}: {ledger.spent_usd - before_usd:.4f} USD, {ledger.spent_usd:.4f} in all ({ledger_path})")
    if left.total():
        raise left.error(f"{asking.step}: {left.total()} of {len(jobs)} were left open", "what was answered")


async def _ask_all(jobs: Sequence[Job], asking: Asking, ledger: Ledger, bar: tqdm, left: LeftOpen) -> None:
    async with ChatClient(asking.endpoint, ledger) as client:
        await check_all([client])
        queue = iter(jobs)
        n = min(asking.endpoint.max_concurrent, len(jobs))
        await asyncio.gather(*(_work(client, queue, asking, left, bar) for _ in range(n)))


async def _work(client: ChatClient, queue: Iterator[Job], asking: Asking, left: LeftOpen, bar: tqdm) -> None:
    for job in queue:
        try:
            await _ask(client, job, asking)
            bar.update()
        except (Transport, Refused, BudgetSpent) as e:
            # where nothing more can be asked, the jobs not begun are left as well
            rest = 0 if isinstance(e, Transport) and not client.closed else sum(1 for _ in queue)
            left.add(e, client.endpoint, 1 + rest)


async def _ask(client: ChatClient, job: Job, asking: Asking) -> None:
    messages, usage, found = [Message(role="user", content=job.prompt)], Usage(), []
    for attempt in range(2):
        seed = int(content_hash([asking.seed, asking.step, job.subject, attempt])[:8], 16)
        try:
            about = f"{asking.step} {job.subject}"
            reply = await client.chat(messages, asking.sampling, seed=seed, about=about)
        except Unreadable as e:
            usage += e.usage
            found.append(e.reason)
            continue
        usage += reply.usage
        try:
            made = job.make(reply.text, usage)
        except Declined as e:
            await _fail(job, asking, str(e), "", usage)
            return
        except ValueError as e:
            found.append(
                f"the answer was cut off after {asking.sampling.max_tokens} tokens" if reply.cut_off else str(e)
            )
        else:
            await asking.done.append(made)
            return
        told = Message(role="user", content=AGAIN[job.language].format(found[-1]))
        messages = [messages[0], Message(role="assistant", content=reply.text), told]
    await _fail(job, asking, UNUSABLE, ", then ".join(found), usage)


async def _fail(job: Job, asking: Asking, reason: str, detail: str, usage: Usage) -> None:
    stage = f"profiles: {asking.step}"
    await asking.failures.append(Failure(stage=stage, subject=job.subject, reason=reason, detail=detail, usage=usage))
