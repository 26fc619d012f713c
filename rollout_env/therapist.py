"""Therapists: who they are in a config, what they are shown, and how a batch of them answers.

A therapist sees its system prompt and the words said so far. Nothing else of a script reaches it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from psychepass.completion import split_thought
from psychepass.config import Config
from psychepass.endpoint import Endpoint
from psychepass.errors import UserError
from psychepass.schema import Identity, Message, Sampling, Usage, content_hash
from rollout_env.prompts import read_prompt
from rollout_env.rule_therapists import Exchange, RuleName, answer, bank_hash

if TYPE_CHECKING:  # torch is imported only when a local model speaks
    from rollout_env.local_model import Chat, LocalModel, Reply

CUT_TURNS = 4  # a history too long for the context loses its oldest exchanges in blocks of this many
TURN_OVERHEAD_TOKENS = 24  # what a template adds to an exchange, at most; only to size the cache


class TherapistEntry(Config):
    """A contestant. `family` is shared by those that differ in seed, temperature or prompt only.

    kind local: `weights` (smollm2, a folder, or a hub name) under `prompt`. kind endpoint: `endpoint` under
    `prompt`. kind rules: `rules`. `prompt` names rollout_env/prompts/therapist_<prompt>.txt, or is the path of a
    text file of one's own that ends in .txt. `sampling` overrides the stage's.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    kind: Literal["local", "endpoint", "rules"]
    family: str
    seed: int = 0
    weights: str | None = None
    prompt: str | None = None
    sampling: Sampling | None = None
    endpoint: Endpoint | None = None
    rules: RuleName | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> TherapistEntry:
        model = "endpoint" if self.kind == "endpoint" else "weights"
        needed = ("rules",) if self.kind == "rules" else (model, "prompt")
        permitted = needed if self.kind == "rules" else (*needed, "sampling")
        for field in ("weights", "endpoint", "prompt", "sampling", "rules"):
            if field in needed and getattr(self, field) is None:
                raise ValueError(f"therapist {self.name!r} of kind {self.kind} needs {field!r}")
            if field not in permitted and getattr(self, field) is not None:
                raise ValueError(f"therapist {self.name!r} of kind {self.kind} takes no {field!r}")
        return self


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a therapist is asked to answer. `key` names the session, `seed` fixes the draw of this reply."""

    key: str
    seed: int
    system: str
    history: tuple[Exchange, ...]
    client: str
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, stripped; empty if nothing was said. `logprob` is the mean natural-log probability a token."""

    text: str
    logprob: float | None
    usage: Usage


def system_prompt(name: str, target_words: int) -> str:
    """The therapist prompt `name` (see TherapistEntry), asking for about `target_words` words.

    Raises:
        UserError: there is no such prompt, or it lacks the placeholder {target_words}.
    """
    own = own_prompt(name)
    if own and not own.is_file():
        raise UserError(f"{own}: no such prompt file")
    text = own.read_text(encoding="utf-8").strip() if own else read_prompt(f"therapist_{name}.txt")
    if "{target_words}" not in text:
        raise UserError(f"prompt {own or f'therapist_{name}.txt'}: expected the placeholder {{target_words}}")
    return text.replace("{target_words}", str(target_words))


def own_prompt(name: str | None) -> Path | None:
    """The file of a prompt that is not one of ours."""
    return Path(name) if name and name.endswith(".txt") else None


def identify(entry: TherapistEntry, weights: str, target_words: int, sampling: Sampling) -> Identity:
    """`weights` is the hash of local weights, else empty."""
    spoken_by = entry.endpoint.identity if entry.endpoint else weights or str(entry.rules)
    prompt_hash = content_hash(system_prompt(entry.prompt, target_words)) if entry.prompt else bank_hash()
    return Identity(
        name=entry.name,
        kind=entry.kind,
        family=entry.family,
        weights=spoken_by,
        prompt_hash=prompt_hash,
        sampling=(entry.sampling or sampling) if entry.prompt else None,
        seed=entry.seed,
    )


def chat_messages(system: str, history: Sequence[Exchange], client: str) -> tuple[Message, ...]:
    """What a policy is shown: the system prompt, the exchanges so far, the client's line."""
    said = [m for c, a in history for m in (Message(role="user", content=c), Message(role="assistant", content=a))]
    return (Message(role="system", content=system), *said, Message(role="user", content=client))


def chat_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The prompt as the tokenizer's own chat template writes it, thinking off where the template knows it."""
    rows = [m.model_dump() for m in messages]
    ids = tokenizer.apply_chat_template(
        rows, tokenize=True, add_generation_prompt=True, return_dict=False, enable_thinking=False
    )
    return list(ids)


def fitted_ids(tokenizer: Any, conversation: Conversation, limit: int) -> list[int]:
    """`chat_ids` of a conversation, cut from the left at turn boundaries to at most `limit` tokens.

    The cut moves in blocks of CUT_TURNS exchanges, so that the prompts of most consecutive turns
    begin alike and the key-value cache stays of use.
    """
    n = len(conversation.history)
    for start in (*range(0, n, CUT_TURNS), n):
        ids = chat_ids(tokenizer, chat_messages(conversation.system, conversation.history[start:], conversation.client))
        if len(ids) <= limit:
            return ids
    raise UserError(f"session {conversation.key}: the prompt without any history has over {limit} tokens")


class RuleTherapists:
    """Answers without a model. The order of their frames is fixed by the session's key."""

    def __init__(self, rules: RuleName):
        self.rules: RuleName = rules

    def batch_size(self, sessions: Sequence[tuple[str, Sequence[str], Sampling]]) -> int:
        return len(sessions)

    def open(self, keys: Sequence[str]) -> None:
        pass

    def reply(self, conversations: Sequence[Conversation]) -> list[Answer]:
        return [
            Answer(answer(self.rules, c.history, c.client, int(content_hash(c.key)[:8], 16)), None, Usage(calls=1))
            for c in conversations
        ]


class LocalTherapists:
    """Conversations of one set of local weights in one batch, whatever their prompts and seeds.

    Keys and values are kept from turn to turn, in at most `cache_gib` GiB.
    """

    def __init__(self, weights: Path, cache_gib: float):
        self.weights, self.cache_gib = weights, cache_gib
        self._loaded: LocalModel | None = None
        self._chat: Chat | None = None
        self._row_of: dict[str, int] = {}

    @property
    def model(self) -> LocalModel:
        if self._loaded is None:
            from rollout_env.local_model import LocalModel

            self._loaded = LocalModel.load(self.weights)
        return self._loaded

    def batch_size(self, sessions: Sequence[tuple[str, Sequence[str], Sampling]]) -> int:
        """How many of these sessions (system prompt, client lines, sampling) the cache holds at once."""
        tokenizer: Any = self.model.tokenizer
        most = 0
        for system, lines, sampling in sessions:
            said = sum(len(ids) for ids in tokenizer([system, *lines])["input_ids"])
            most = max(most, said + len(lines) * (sampling.max_tokens + TURN_OVERHEAD_TOKENS))
        row_bytes = self.model.bytes_per_token * min(most, self.model.context_tokens)
        return max(1, int(self.cache_gib * 2**30 / row_bytes))

    def open(self, keys: Sequence[str]) -> None:
        """Begin a batch of conversations; the cache of an earlier one is let go."""
        self._chat = None
        self._chat = self.model.open(len(keys))
        self._row_of = {key: row for row, key in enumerate(keys)}

    def reply(self, conversations: Sequence[Conversation]) -> list[Answer]:
        from rollout_env.local_model import Request

        assert self._chat is not None, "open() comes first"
        begun = time.perf_counter()
        asked = {}
        for c in conversations:
            limit = self.model.context_tokens - c.sampling.max_tokens
            asked[self._row_of[c.key]] = Request(fitted_ids(self.model.tokenizer, c, limit), c.sampling, c.seed)
        replies = self._chat.reply(asked)
        seconds = (time.perf_counter() - begun) / len(conversations)
        return [
            _answer(replies[row], len(asked[row].prompt_ids), seconds)
            for row in (self._row_of[c.key] for c in conversations)
        ]


def _answer(reply: Reply, prompt_tokens: int, seconds: float) -> Answer:
    usage = Usage(calls=1, prompt_tokens=prompt_tokens, completion_tokens=len(reply.ids), seconds=round(seconds, 4))
    return Answer(split_thought(reply.text)[0], round(reply.logprob_mean, 4), usage)  # a thought is nothing said
