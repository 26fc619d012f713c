"""Stage `scripts`: a model writes each client's script (PsychePass, section 3.1.3), beside the deterministic builder.

Writes into the run:
    generated_scripts.jsonl  a Script as soon as it is valid; stage `simulate` reads it by its key `scripts`
    script_drafts.jsonl      a ScriptDraft for each answer of the model, with its faults
    script_failures.jsonl    a Failure for each client whose last try was faulty too
    ledger_scripts.jsonl     a line for each call
A faulty answer is shown to the model with its faults, `repairs` times at most. Killed and called again, the stage goes
on from the drafts; nothing written is asked again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from pydantic import Field
from tqdm import tqdm

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.dry_run import Planned, table
from psychepass.endpoint import Endpoint, prompt_tokens
from psychepass.errors import UserError
from psychepass.ledger import BudgetSpent, Ledger, spent_usd
from psychepass.left_open import LeftOpen
from psychepass.llm import ChatClient, Refused, Transport, Unreadable
from psychepass.run import say, stage_run
from psychepass.schema import Failure, Profile, Sampling, Script, ScriptDraft, content_hash
from psychepass.splits import Split, Splits
from rollout_env.asking import GroupedAppends, check_all
from rollout_env.banks import Bank
from rollout_env.profiles import load_profiles
from rollout_env.script_source import bank_named
from rollout_env.script_writer import UNSAFE, Pool, is_unsafe, read_script, writer_messages

SCRIPTS, DRAFTS, FAILURES = "generated_scripts.jsonl", "script_drafts.jsonl", "script_failures.jsonl"
LEDGER = "ledger_scripts.jsonl"
FREE = frozenset({"run", "budget_usd", "allow_minors"})  # a permission: profiles and scripts hold the ages
SCRIPT_TOKENS = 4000  # of 44 turns as JSON, about
FAULT_TOKENS = 800  # of the faults that a repair shows, about


class ScriptsConfig(StageConfig):
    """`profiles` null: the shipped ones; `allow_minors` permits clients under 18 among them. `repairs`: how often a
    faulty script is sent back. All have the full form.
    """

    splits: str
    profiles: str | None = None
    allow_minors: bool = False
    endpoint: Endpoint
    sampling: Sampling
    repairs: int = Field(default=2, ge=0)
    budget_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)


def main(config_path: str, overrides: list[str]) -> None:
    config = load(ScriptsConfig, config_path, overrides)
    files = [Path(f) for f in (config.splits, config.profiles) if f]
    with stage_run("scripts", config, inputs=files, ignore=FREE) as run:
        if run.done:
            return
        try:
            found = _write_all(config, run.dir)
        except UserError:
            if run.manifest["starts"] == 1 and not any(_size(run.dir / n) for n in (DRAFTS, LEDGER)):
                run.abandon()
            raise
        run.note(**found)


def dry_run(config_path: str, overrides: list[str]) -> None:
    """Print the calls that are still to be made; nothing is asked or written."""
    config = load(ScriptsConfig, config_path, overrides)
    folder, profiles = Path(config.run), _profiles(config)
    done = {s.profile_id for s in records.peek(folder / SCRIPTS, Script)}
    done |= {f.subject for f in records.peek(folder / FAILURES, Failure)}
    drafts = Counter(d.profile_id for d in records.peek(folder / DRAFTS, ScriptDraft))
    said = min(SCRIPT_TOKENS, config.sampling.max_tokens)
    calls = asked = most_asked = most_calls = 0
    for name, (profile, split) in profiles.items():
        if name in done:
            continue
        prompt, left = prompt_tokens(writer_messages(profile, _bank(split), ())), config.repairs + 1 - drafts[name]
        repair = prompt + config.sampling.max_tokens + FAULT_TOKENS
        calls, most_calls = calls + 1, most_calls + left
        asked += prompt + (said + FAULT_TOKENS if drafts[name] else 0)
        most_asked += left * repair - (0 if drafts[name] else repair - prompt)
    counts = (calls, asked, calls * said, most_asked, most_calls * config.sampling.max_tokens)
    planned = [Planned(config.endpoint.name, config.endpoint.price, *counts)]
    print(table(planned, config.budget_usd, spent_usd(folder / LEDGER)))


def _write_all(config: ScriptsConfig, folder: Path) -> dict[str, int]:
    profiles = _profiles(config)
    with Ledger(folder / LEDGER, config.budget_usd) as ledger:
        with Writer(config, folder, profiles, ledger) as writer:
            left_open = asyncio.run(writer.write_all())
        say(f"scripts: {ledger.spent_usd:.4f} USD in all ({ledger.path})")
        counts = {"scripts": len(writer.scripts.done), "failures": len(writer.failures.done)}
        counts["drafts"] = len(writer.drafts.done)
    if counts["failures"]:
        say(f"{counts['failures']} of {len(profiles)} clients have no valid script: {folder / FAILURES}")
    if left_open.total():
        raise left_open.error(f"{left_open.total()} of {len(profiles)} scripts were left open", "what was written")
    return counts


def _profiles(config: ScriptsConfig) -> dict[str, tuple[Profile, Split]]:
    split_of, pool = load(Splits, config.splits).of(), load_profiles(config.profiles, config.allow_minors)
    missing = [p for p in split_of if p not in pool]
    if missing:
        raise UserError(f"{config.splits}: no profile is called {', '.join(missing)}")
    return {p: (pool[p], split) for p, split in split_of.items()}


def _bank(split: Split) -> Bank:
    return bank_named("heldout" if split == "heldout" else "common")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class Writer:
    """All clients of one call of the stage."""

    def __init__(self, config: ScriptsConfig, folder: Path, profiles: dict[str, tuple[Profile, Split]], ledger: Ledger):
        self.config, self.profiles, self.ledger = config, profiles, ledger
        self.scripts = records.Appender(folder / SCRIPTS, Script)
        self.drafts = records.Appender(folder / DRAFTS, ScriptDraft)
        self.failures = records.Appender(folder / FAILURES, Failure)
        self._ended = GroupedAppends(self.scripts), GroupedAppends(self.failures)
        self.pool = Pool()
        self._sent: dict[str, list[ScriptDraft]] = {}
        for draft in self.drafts.done.values():
            self._sent.setdefault(draft.profile_id, []).append(draft)
            if not draft.faults and draft.profile_id in profiles:
                self._accept(draft)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for appender in (self.scripts, self.drafts, self.failures):
            appender.__exit__()

    def _accept(self, draft: ScriptDraft) -> Script:
        profile, split = self.profiles[draft.profile_id]
        script, faults = read_script(draft.text, profile, _bank(split))
        if script is None:
            raise UserError(f"{self.drafts.path}: the draft of {draft.profile_id} has faults now: {faults[0]}")
        self.pool.add(script, split)
        return script

    async def write_all(self) -> LeftOpen:
        """Returns why scripts were left open, and how many."""
        ended = {s.profile_id for s in self.scripts.done.values()} | {f.subject for f in self.failures.done.values()}
        todo = [p for p in self.profiles if p not in ended]
        journal, left_open = GroupedAppends(self.drafts), LeftOpen()
        with tqdm(total=len(todo), desc="scripts", unit="script", disable=not todo) as bar:
            async with ChatClient(self.config.endpoint, self.ledger) as chat:
                if todo:
                    await check_all([chat])

                async def one(name: str) -> None:
                    try:
                        await self._write_one(name, chat, journal)
                        bar.update()
                    except (Transport, Refused, BudgetSpent) as e:
                        left_open.add(e, chat.endpoint)

                await asyncio.gather(*(one(name) for name in todo))
        return left_open

    async def _write_one(self, name: str, chat: ChatClient, journal: GroupedAppends) -> None:
        (profile, split), (scripts, failures) = self.profiles[name], self._ended
        sent = self._sent.setdefault(name, [])
        while not sent or (sent[-1].faults and len(sent) <= self.config.repairs):
            draft = await self._draft(profile, split, sent, chat)
            sent.append(draft)
            await journal.append(draft)
        if sent[-1].faults:
            reason, detail = f"no valid script in {len(sent)} tries", "; ".join(sent[-1].faults[:3])
            await failures.append(Failure(stage="scripts", subject=name, reason=reason, detail=detail))
        else:
            script, _ = read_script(sent[-1].text, profile, _bank(split))
            assert script is not None, "a draft without faults is a script"
            await scripts.append(script)

    async def _draft(self, profile: Profile, split: Split, sent: list[ScriptDraft], chat: ChatClient) -> ScriptDraft:
        name, bank = profile.profile_id, _bank(split)
        seed = int(content_hash([self.config.seed, name, len(sent)]), 16) >> 1
        given = {"profile_id": name, "attempt": len(sent)}
        about = f"script {name} try {len(sent) + 1}"
        try:
            reply = await chat.chat(writer_messages(profile, bank, sent), self.config.sampling, seed=seed, about=about)
        except Unreadable as e:
            return ScriptDraft(**given, text="", faults=(f"no readable answer: {e.reason}",), usage=e.usage)
        if is_unsafe(reply.text):
            return ScriptDraft(**given, text="", faults=(UNSAFE,), usage=reply.usage)
        script, faults = read_script(reply.text, profile, bank)
        if script is not None:
            faults = self.pool.faults(script, split)
            if not faults:
                self.pool.add(script, split)
        if faults and reply.cut_off:
            faults = ("the answer was cut off by the token bound", *faults)
        return ScriptDraft(**given, text=reply.text, faults=faults, usage=reply.usage)
