"""Scripts that a model writes: the prompt, and the same validation as the builder's. No I/O.

The model sends what a bank holds of a client (rollout_env/banks.py), so that the deterministic builder makes the
script of it, and script_lint looks for the same faults. Needs and techniques are those of the shipped bank of the
client's set, so that held-out clients keep their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from psychepass.completion import whole
from psychepass.config import describe
from psychepass.errors import UserError
from psychepass.schema import Dimension, Message, Profile, Script, ScriptDraft
from psychepass.splits import RUN_WORDS, Split, shared_runs
from psychepass.words import signs
from rollout_env.banks import Bank, ClientLines, Key
from rollout_env.minors import ADULT_YEARS, ROMANTIC_REQUEST, is_minor, script_faults
from rollout_env.prompts import read_prompt
from rollout_env.script import PHASE_TURNS, build_script
from rollout_env.script_lint import (
    AFFECTS,
    EMPTY_WORDS,
    MAX_WORDS,
    METHOD,
    REQUESTS,
    REQUIRED,
    TRAUMA_WORDS,
    lint,
)

LANGUAGES = {"en": "English", "zh": "Chinese"}
FENCE = re.compile(r"^```(?:json)?\s*(.*?)\s*```$", re.DOTALL)
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
UNSAFE = "it names a means of harm (withheld); write it anew without"
MOST_SHOWN = 20
SHARED_LINES = 1


def writer_prompt(profile: Profile, bank: Bank) -> str:
    """What the model is asked for one client."""
    shown = profile.model_dump(mode="json", exclude={"id", "schema_version", "profile_id", "human_verified"})
    young = is_minor(profile)
    return read_prompt("script.txt").format(
        who=f"client under {ADULT_YEARS}, without any romantic or sexual theme," if young else "adult",
        profile=json.dumps(shown, ensure_ascii=False, indent=1),
        lines=", ".join(str(n) for n in PHASE_TURNS.values()),
        language=LANGUAGES[profile.language],
        name=profile.name,
        most_words=MAX_WORDS["full"],
        affects=", ".join(sorted(AFFECTS)),
        trauma_words=TRAUMA_WORDS,
        empty_words=EMPTY_WORDS,
        requests=", ".join(sorted(REQUESTS - {ROMANTIC_REQUEST} if young else REQUESTS)),
        needs=_listed(bank.needs, profile.language),
        techniques=_listed(bank.techniques, profile.language),
    )


def writer_messages(profile: Profile, bank: Bank, drafts: Sequence[ScriptDraft]) -> tuple[Message, ...]:
    """The prompt, and after a faulty draft that draft with its faults; earlier ones are left out."""
    shown = [Message(role="user", content=writer_prompt(profile, bank))]
    if drafts:
        faults = "\n".join(f"- {fault}" for fault in drafts[-1].faults[:MOST_SHOWN])
        more = len(drafts[-1].faults) - MOST_SHOWN
        faults += f"\n- and {more} more" if more > 0 else ""
        repair = f"This has faults:\n{faults}\nSend the whole corrected JSON object and nothing else."
        if drafts[-1].text:
            shown += [Message(role="assistant", content=drafts[-1].text), Message(role="user", content=repair)]
        else:
            shown[0] = Message(role="user", content=f"{shown[0].content}\n\nAn earlier answer failed. {repair}")
    return tuple(shown)


def read_script(text: str, profile: Profile, bank: Bank) -> tuple[Script | None, tuple[str, ...]]:
    """The script of what a model sent, or its faults in words."""
    fence = FENCE.match(text.strip())
    try:
        tree = whole(json.loads(fence.group(1) if fence else text))
    except (ValueError, RecursionError) as e:
        return None, (f"not one JSON object: {e}",)
    try:
        lines = ClientLines.model_validate(tree)
    except ValidationError as e:
        return None, (describe(e, ClientLines),)
    faults = tuple(_target_faults(lines))
    if faults:
        return None, faults
    own = bank.model_copy(update={"clients": {profile.profile_id: lines}})
    try:
        script = build_script(profile, "full", (own,))
    except UserError as e:
        return None, (str(e),)
    faults = (*lint(script, own), *script_faults(script, profile))
    return (None, faults) if faults else (script, ())


def is_unsafe(text: str) -> bool:
    """Whether a draft names a means of harm, also where JSON's escapes spell it."""
    return bool(METHOD.search(ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)))


class Pool:
    """The scripts accepted so far, and what a further one may not share with them (script_lint.lint_pool)."""

    def __init__(self) -> None:
        self._owner_lines: dict[str, set[str]] = {}  # profile id -> whole lines
        self._said: dict[bool, list[str]] = {True: [], False: []}  # held-out or not -> lines

    def faults(self, script: Script, split: Split) -> tuple[str, ...]:
        own, found = _lines(script), []
        for other, lines in self._owner_lines.items():
            if other != script.profile_id and len(own & lines) > SHARED_LINES:
                found.append(f"shares whole lines with another client: {', '.join(sorted(own & lines)[:3])}")
        shared = shared_runs((t.client.trigger for t in script.turns), self._said[split != "heldout"])
        if shared:
            found.append(
                f"shares runs of {RUN_WORDS} words with clients of another set: {'; '.join(sorted(shared)[:5])}"
            )
        return tuple(found)

    def add(self, script: Script, split: Split) -> None:
        self._owner_lines[script.profile_id] = _lines(script)
        self._said[split == "heldout"] += [t.client.trigger for t in script.turns]


def _lines(script: Script) -> set[str]:
    return {" ".join(signs(t.client.trigger)) for t in script.turns}


def _listed(keys: dict[str, Key], language: str) -> str:
    words = {name: key.words_zh if language == "zh" else key.words for name, key in keys.items()}
    return "\n".join(f"- {name}: {key.assesses} Not: {', '.join(words[name])}" for name, key in keys.items())


def _target_faults(lines: ClientLines) -> Iterable[str]:
    """Targets that the builder would take as they come."""
    names = {d.value: {n for n in needed if not n.endswith("_turn")} for d, needed in REQUIRED.items()}
    names.pop(Dimension.PROGRESSION.value)
    for line in (line for phase in lines.phases for line in phase.lines):
        if line.probes not in (None, "safety", *names):
            yield f"line {line.say!r}: probes is {line.probes!r}; permitted: null, safety, {', '.join(names)}"
            continue
        wanted = names.get(line.probes or "", set())
        if set(line.targets) != wanted or not all(v.strip() for vs in line.targets.values() for v in vs):
            required = ", ".join(sorted(wanted)) or "none"
            yield f"line {line.say!r}: targets are {_short(line.targets)}; required: {required}"


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:200]
