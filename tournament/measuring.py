"""Who measures in stages heldout and best-of-n: the reference judge, or LLM judges behind endpoints in its place.

The roles of a comparison:
    judge       whose verdicts are the headline and the gate: the reference judge, or the config's LLM judges
    shadow      the reference judge's shadow, always. What the protocol asks of a shadow judge is that it was frozen
                before RL and had no part in the training. That holds for it whoever labelled the tournament; the
                reference judge labels wherever no LLM judges do, and its margins decide Diversity everywhere.
    reference   the reference judge, beside LLM judges: gaming of word lists shows between it and its shadow alone.
What LLM judges decide lies in a folder of its own (PANEL), so that records of different judges never meet in a file:
battles.jsonl, failures.jsonl and judge_replies.jsonl, as in stage tournament. They are shown both orders. A reply is on
disk before anything rests on it; a kill loses the calls in flight and nothing answered is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from tqdm import tqdm

from psychepass import records
from psychepass.config import StageConfig
from psychepass.endpoint import Endpoint
from psychepass.errors import UserError
from psychepass.ledger import Ledger
from psychepass.llm import ChatClient
from psychepass.run import say
from psychepass.schema import Battle, Dimension, Failure, Identity, Script
from rollout_env.asking import check_all
from tournament.endpoint_matches import NOT_HAD, EndpointMatches
from tournament.journal import Journal
from tournament.lexicon import LexiconName
from tournament.llm_judge import JudgeEntry
from tournament.panel import Panel, also_playing
from tournament.play import Match, Wave
from tournament.reference_judge import ReferenceJudge

ROLES: tuple[LexiconName, ...] = ("judge", "shadow")
PANEL = "panel"


class JudgedConfig(StageConfig):
    """`judges`: LLM judges, of whom several vote (tournament/panel.py); null or none: the reference judge.

    `budget_usd` bounds what all calls of the stage to endpoints may cost together on this run.
    """

    judges: list[JudgeEntry] | None = None
    budget_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_names(self) -> JudgedConfig:
        names = [judge.name for judge in self.judges or ()]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two judges are called {', '.join(twice)}; each needs a name of its own")
        return self


def frozen_judges(path: Path) -> dict[str, ReferenceJudge]:
    """The judge and the shadow judge as the tournament froze them.

    Raises:
        UserError: this code's rubric is not the frozen one.
    """
    frozen = records.read_json(path)
    judges = {}
    for role in ROLES:
        tau = {Dimension(d): float(v) for d, v in frozen[role]["tau"].items()}
        judges[role] = ReferenceJudge(role, tau)
        identity = judges[role].identity.model_dump(mode="json")
        changed = [k for k, v in identity.items() if frozen[role].get(k) != v]
        if changed:
            raise UserError(
                f"{path}: the {role} was frozen with {changed[0]} {frozen[role].get(changed[0])!r}, the code now has "
                f"{identity[changed[0]]!r}; one run has one judge"
            )
    return judges


def panel_of(
    entries: Sequence[JudgeEntry] | None, judges: Mapping[str, ReferenceJudge], scripts: Iterable[Script], stage: str
) -> Panel | None:
    """The config's LLM judges, with the frozen reference judge's margin of Diversity; None if it has none."""
    return Panel(entries, judges["judge"].tau[Dimension.DIVERSITY], scripts, stage) if entries else None


@dataclass(frozen=True)
class Measured:
    """What LLM judges decided. `battles`: of each match, in their order, those of both presentations that could be
    read, with the match's first session at A. `failures`: judgements that could not be read."""

    panel: Panel
    battles: tuple[tuple[Battle, ...], ...]
    failures: int

    @property
    def all(self) -> list[Battle]:
        return [b for of_match in self.battles for b in of_match]

    def described(self, contestants: Sequence[Identity]) -> dict[str, Any]:
        """For summary.json: the judge or panel, each of its judges, and those that play too."""
        found = self.panel.identity.model_dump(mode="json")
        found["judges"] = [{**j.identity.model_dump(mode="json"), "family": j.entry.family} for j in self.panel.judges]
        return found | {"also_plays": also_playing(self.panel.judges, contestants)}


def decide(panel: Panel, matches: Sequence[Match], folder: Path, ledger: Path, budget_usd: float | None) -> Measured:
    """Every match in both orders before the panel, in `folder`; what is there is not asked again.

    Raises:
        UserError: a key, an address or a model is wrong, and no call was made; records of another judge are there; or
            matches are left for the next run (Unfinished, if an endpoint did not answer).
    """
    with Journal(folder, panel.identity, panel.stage) as journal, Ledger(ledger, budget_usd) as calls:
        held, different = EndpointMatches(panel, journal, calls, folder), {_pair(m): m for m in matches}
        wave = Wave(list(different.values()))
        with held, tqdm(total=len(different), desc="judgements", unit="match") as bar:
            before_usd = calls.spent_usd
            held.hold([iter([wave])], bar)
        say(f"judges: {calls.spent_usd - before_usd:.4f} USD in this run, {calls.spent_usd:.4f} in all ({ledger})")
    of_pair = dict(zip(different, wave.held, strict=True))
    left = sum(of_match is None for of_match in wave.held)
    if left:
        what = f"{left} of {len(different)} matches are left to judge, because {NOT_HAD}"
        raise held.left_open.error(what, "what was judged")
    found = tuple(
        tuple(o if o.session_a == m.a.id else o.swapped() for o in of_pair[_pair(m)] or () if isinstance(o, Battle))
        for m in matches
    )
    return Measured(panel, found, sum(isinstance(o, Failure) for of_match in wave.held for o in of_match or ()))


def _pair(met: Match) -> frozenset[str]:
    """Two sessions may be drawn twice; they are shown once in each order."""
    return frozenset((met.a.id, met.b.id))


def check_endpoints(endpoints: Iterable[Endpoint], ledger: Path) -> None:
    """Before the first call of `ledger`, ask each endpoint for its models; later, whoever asks them does so.

    Raises:
        UserError: a key, an address or a model is wrong.
    """
    different = {repr(e): e for e in endpoints}.values()
    if not different or (ledger.is_file() and ledger.stat().st_size):
        return
    with Ledger(ledger) as calls:
        asyncio.run(_check(different, calls))


async def _check(endpoints: Collection[Endpoint], calls: Ledger) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(ChatClient(e, calls)) for e in endpoints]
        await check_all(clients)
