"""Who speaks as the client: the script's own words, or a model that plays them (PsychePass, section 3.1.3, D.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import yaml
from pydantic import model_validator

from psychepass.config import Config
from psychepass.endpoint import Endpoint
from psychepass.schema import ClientLine, Identity, Message, Phase, Profile, Sampling, Script, content_hash
from rollout_env.adherence import WITHHELD_KINDS, most_words, violations
from rollout_env.minors import is_minor
from rollout_env.passive import minimal_turns
from rollout_env.prompts import read_prompt
from rollout_env.rule_therapists import Exchange
from rollout_env.script_lint import EMPTY_WORDS

LANGUAGES = {"en": "English", "zh": "Chinese"}
NONE = "nothing in particular"


class ClientEntry(Config):
    """Who plays the clients of a stage. `endpoint` null: the scripted client, in passive mode.

    mode active: each line carries the script's line. mode passive: see rollout_env/passive.py.
    """

    mode: Literal["active", "passive"] = "active"
    endpoint: Endpoint | None = None
    sampling: Sampling | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _check_speaker(self) -> ClientEntry:
        if self.endpoint is None and self.mode == "active":
            raise ValueError("without 'endpoint' it is the scripted client; permitted: client: null, or mode: passive")
        if (self.endpoint is None) != (self.sampling is None):
            raise ValueError("a client with 'endpoint' needs 'sampling', and one without takes none")
        return self


class ScriptedClient:
    """One client in one session. `identity` names the script, so that another script is another client."""

    def __init__(self, script: Script):
        self.script = script
        self.identity = Identity(name="scripted", kind="scripted", family="scripted", weights=script.id)

    def say(self, turn: int) -> str:
        """The line of dialogue turn `turn` (1-based).

        Raises:
            IndexError: the script has no such turn.
        """
        if not 1 <= turn <= len(self.script.turns):
            raise IndexError(f"script {self.script.id} has turns 1 to {len(self.script.turns)}, not {turn}")
        return self.script.turns[turn - 1].client.trigger


class LLMClient:
    """A model that plays one profile through one script. Its prompt is made anew for every turn (equation 1).

    Of the evaluator layer it learns the probed dimension alone, as a direction in the client's own terms.
    """

    def __init__(self, entry: ClientEntry, profile: Profile, script: Script):
        assert entry.endpoint and entry.sampling, "an LLM client has an endpoint"
        self.profile, self.script, self.passive = profile, script, entry.mode == "passive"
        self.endpoint, self.sampling = entry.endpoint, entry.sampling
        self.minimal = minimal_turns(script, self.passive)
        self.identity = Identity(
            name=f"{entry.endpoint.model} as client" + (", passive" if self.passive else ""),
            kind="endpoint",
            family=entry.endpoint.model,
            weights=entry.endpoint.identity,
            prompt_hash=content_hash([read_prompt("client.txt"), _directions(), entry.mode]),
            sampling=entry.sampling,
            seed=entry.seed,
        )

    def prompt(self, turn: int) -> str:
        """The system prompt of dialogue turn `turn`: from profile, phase, dimension and turn."""
        scripted, about, told = self.script.turns[turn - 1], self.profile, _directions()
        layer, dimension = scripted.client, scripted.evaluator.dimension
        return read_prompt("client.txt").format(
            **_person(about),
            turn=turn,
            turns=len(self.script.turns),
            phase=told["phases"][int(Phase(scripted.phase))],
            dimension=told["dimensions"][dimension.value if dimension else "none"],
            theme=layer.theme or NONE,
            emotion=layer.emotion,
            memories="; ".join(layer.memories) or NONE,
            verbal_pattern=layer.verbal_pattern or NONE,
            resistance=layer.resistance or NONE,
            task=self._task(turn),
            language=LANGUAGES[about.language],
            most_words=EMPTY_WORDS if turn in self.minimal else most_words(scripted),
        )

    def messages(self, turn: int, history: Sequence[Exchange], drafts: Sequence[ClientLine]) -> tuple[Message, ...]:
        """What the model is shown: what the client said is its own, what the therapist said is the other's.

        `drafts` are this turn's earlier ones; a readable one is shown with what was wrong.
        """
        told = _directions()
        shown = [Message(role="system", content=self.prompt(turn)), Message(role="user", content=told["opening"])]
        for line, reply in history:
            shown += [Message(role="assistant", content=line), Message(role="user", content=reply)]
        for draft in drafts:
            faults = "; ".join(told["faults"][kind] for kind in draft.violations)
            again = told["retry"].format(name=self.profile.name, faults=faults, task=self._task(turn))
            if draft.text:
                shown += [Message(role="assistant", content=draft.text), Message(role="user", content=again)]
            elif set(WITHHELD_KINDS) & set(draft.violations):  # withheld: what is not kept is not shown either
                shown[-1] = Message(role="user", content=f"{shown[-1].content}\n\n{again}")
        return tuple(shown)

    def violations(self, turn: int, line: str, cut_off: bool = False) -> tuple[str, ...]:
        """As `rollout_env.adherence.violations`."""
        about, young = self.profile, is_minor(self.profile)
        return violations(line, self.script.turns[turn - 1], about.name, turn in self.minimal, cut_off, young)

    def _task(self, turn: int) -> str:
        told, trigger = _directions()["tasks"], self.script.turns[turn - 1].client.trigger
        task = told["minimal" if turn in self.minimal else "speak"]
        task = task.format(trigger=trigger, minimal_words=EMPTY_WORDS)
        return f"{told['passive']} {task}" if self.passive else task


@cache
def _directions() -> dict[str, Any]:
    return yaml.safe_load(read_prompt("client_turns.yaml"))


def _person(profile: Profile) -> dict[str, Any]:
    """The placeholders that a profile fills."""
    event, drive, reaction = profile.event, profile.core_drive, profile.reaction_pattern
    return {
        **{k: getattr(profile, k) for k in ("name", "age", "gender", "occupation", "topic", "subtopic", "situation")},
        "personality": ", ".join(profile.personality),
        "event": f"{event.time}; {event.location}; {', '.join(event.participants)}",
        "core_drive": f"{drive.name.lower()}: {drive.description}",
        "reaction_pattern": f"{reaction.description.rstrip('.')} ({reaction.name}).",
        "emotional_words": ", ".join(profile.emotional_words),
        "social_support": "; ".join(f"{p.name}, {p.description}" for p in profile.social_support) or "nobody named",
        "formative_experiences": "; ".join(
            f"at {e.age}: {e.event} ({e.belief})" for e in profile.formative_experiences
        ),
        "interests": ", ".join(profile.interests) or NONE,
        "values": ", ".join(profile.values) or NONE,
    }
