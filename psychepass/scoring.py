"""The client of the scorer service (reward_model/serve.py): groups of replies in, raw rewards out.

A reward is a reward model's raw logit; only differences within one context and dimension mean something.
Nothing here invents one: a scorer that is down, answers nonsense or changes its model is an error.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from pydantic import Field, model_validator

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import Dimension, Frozen, Message

SCORER_FILE = "scorer.json"
PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
BUSY = (502, 503, 504)
CONSTANT = 1e-6  # of the rewards: a spread below that share is rounding, not preference


class ScoreGroup(Frozen):
    """R replies to one context, each asked about D dimensions.

    `context` is the conversation so far without a system prompt: user and assistant in turn, the first
    and the last from the user (the client).
    """

    context: tuple[Message, ...] = Field(min_length=1)
    responses: tuple[str, ...] = Field(min_length=1)
    dimensions: tuple[Dimension, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        roles = [m.role for m in self.context]
        expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))]
        if roles != expected or roles[-1] != "user":
            raise ValueError(f"context must be user, assistant, ..., user without a system message; got {roles}")
        return self


def untrained(trained: Iterable[str] | None, asked: Iterable[Dimension]) -> tuple[Dimension, ...] | None:
    """Which of the dimensions `asked` a model was never trained on; None for one whose card does not say."""
    if trained is None:
        return None
    missing = set(asked) - set(trained)
    return tuple(d for d in Dimension if d in missing)


def constant(mean: float, std: float) -> bool:
    """Whether rewards of that mean and spread differ by rounding alone, and so prefer nothing."""
    return std <= CONSTANT * max(1.0, abs(mean))


class Scorer:
    """A scorer at `url`. `timeout_s` bounds one call with its retries; `model` is what answered last, and
    `dimensions` what it was trained on by the last look at its health; None where it does not say.

    A scorer that is down or busy is asked again until then; `file`, a run's scorer.json, is where another
    one in its place leaves its address.
    """

    def __init__(self, url: str, timeout_s: float = 120.0, model: str | None = None, file: str | Path | None = None):
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.model = model
        self.dimensions: list[str] | None = None
        self.file = None if file is None else Path(file)

    def arguments(self) -> dict[str, Any]:
        """What makes this scorer again in another process."""
        file = None if self.file is None else str(self.file.resolve())
        return {"url": self.url, "timeout_s": self.timeout_s, "model": self.model, "file": file}

    @classmethod
    def of_run(cls, run_dir: str | Path, url: str | None = None, timeout_s: float = 120.0) -> Scorer:
        """The scorer at `url`, or else the one that `<run_dir>/scorer.json` names, once it is healthy.

        Raises:
            UserError: not healthy within `timeout_s`; names where was looked and what was seen last.
        """
        deadline = time.monotonic() + timeout_s
        path = Path(run_dir) / SCORER_FILE
        seen = "nothing"
        for pause_s in _pauses(deadline):
            try:
                address = {"url": url} if url else records.read_json(path)
                scorer = cls(str(address["url"]), timeout_s, file=None if url else path)
                scorer.model = scorer.health()
                if "model" in address and address["model"] != scorer.model:
                    raise UserError(f"{scorer.url} answers for model {scorer.model!r}, not {address['model']!r}")
                return scorer
            except (UserError, KeyError, TypeError) as e:
                seen = str(e) if isinstance(e, UserError) else f"{path}: expected a mapping with 'url'"
            time.sleep(pause_s)
        where = url or f"the address in {path}"
        raise UserError(
            f"no healthy scorer at {where} within {timeout_s:g} s ({seen}); start it with psychepass serve-rm"
        )

    def health(self) -> str:
        """The served model's id, and `dimensions` of it; one try of at most 5 s. Raises UserError."""
        try:
            with _client(httpx.Client, min(5.0, self.timeout_s)) as client:
                body = _json(client.get(f"{self.url}/health"), self.url)
        except httpx.HTTPError as e:
            raise UserError(f"scorer {self.url}: {type(e).__name__}: {e}") from e
        if not isinstance(body, dict) or body.get("status") != "ok" or not isinstance(body.get("model"), str):
            raise UserError(f"scorer {self.url}/health: expected status 'ok' and a model, got {str(body)[:200]!r}")
        named = body.get("dimensions")
        self.dimensions = named if isinstance(named, list) else None
        return body["model"]

    def warnings(self, asked: Iterable[Dimension]) -> list[str]:
        """What to know before its rewards on the dimensions `asked` are relied on; usually nothing."""
        names = ", ".join(untrained(self.dimensions, asked) or ())
        told = f"Reward model {self.model} was never trained on {names}: its rewards there mean nothing."
        return [told] if names else []

    def score(self, groups: Sequence[ScoreGroup]) -> list[list[list[float]]]:
        """Rewards [group][response][dimension], in the order of the request.

        Raises:
            UserError: refused input, no answer within `timeout_s`, an answer of another shape, a value that
                is not finite, or an answer from another model than before.
        """
        deadline = time.monotonic() + self.timeout_s
        seen = "nothing"
        for pause_s in _pauses(deadline):
            try:
                with _client(httpx.Client, deadline - time.monotonic()) as client:
                    reply = client.post(f"{self._address()}/score", json=_payload(groups))
                if reply.status_code not in BUSY:
                    return self._read(reply, groups)
                seen, pause_s = _refusal(reply, pause_s, deadline)
            except httpx.HTTPError as e:
                seen = f"{type(e).__name__}: {e}"
            time.sleep(pause_s)
        raise self._no_answer(seen)

    async def ascore(self, groups: Sequence[ScoreGroup]) -> list[list[list[float]]]:
        """As `score`, without blocking the event loop."""
        deadline = time.monotonic() + self.timeout_s
        seen = "nothing"
        for pause_s in _pauses(deadline):
            try:
                async with _client(httpx.AsyncClient, deadline - time.monotonic()) as client:
                    reply = await client.post(f"{self._address()}/score", json=_payload(groups))
                if reply.status_code not in BUSY:
                    return self._read(reply, groups)
                seen, pause_s = _refusal(reply, pause_s, deadline)
            except httpx.HTTPError as e:
                seen = f"{type(e).__name__}: {e}"
            await asyncio.sleep(pause_s)
        raise self._no_answer(seen)

    def _address(self) -> str:
        """Where to ask: `file` names a service that was started again; while there is none, the last known one."""
        if self.file is not None:
            with suppress(UserError, KeyError, TypeError):  # between two services
                self.url = str(records.read_json(self.file)["url"]).rstrip("/")
        return self.url

    def _no_answer(self, seen: str) -> UserError:
        return UserError(
            f"scorer {self.url} gave no rewards within {self.timeout_s:g} s (last: {seen}); is it running?"
        )

    def _read(self, reply: httpx.Response, groups: Sequence[ScoreGroup]) -> list[list[list[float]]]:
        body = _json(reply, self.url)
        if not isinstance(body, dict) or not isinstance(body.get("model"), str) or "rewards" not in body:
            raise UserError(f"scorer {self.url}: expected 'model' and 'rewards', got {str(body)[:200]!r}")
        if self.model is not None and body["model"] != self.model:
            raise UserError(f"scorer {self.url} changed its model from {self.model!r} to {body['model']!r}")
        rewards = _checked_rewards(body["rewards"], groups, self.url)
        self.model = body["model"]
        return rewards


C = TypeVar("C", httpx.Client, httpx.AsyncClient)


def _client(kind: type[C], timeout_s: float) -> C:
    """A client for one try; straight to the scorer, whatever proxy the environment names."""
    return kind(timeout=max(0.01, timeout_s), trust_env=False, verify=_certificates())


@cache
def _certificates() -> ssl.SSLContext:
    """Made once: httpx would take 30 ms of CPU for it in every try."""
    return httpx.create_ssl_context(trust_env=False)


def _refusal(reply: httpx.Response, pause_s: float, deadline: float) -> tuple[str, float]:
    """What a busy scorer said, and how long to wait: what it asks for, if that is longer, until the deadline."""
    asked = reply.headers.get("Retry-After", "")
    if asked.isdecimal():
        pause_s = max(pause_s, min(float(asked), deadline - time.monotonic()))
    return f"status {reply.status_code}: {reply.text[:200]}", pause_s


def _payload(groups: Sequence[ScoreGroup]) -> dict[str, Any]:
    return {"groups": [g.model_dump(mode="json") for g in groups]}


def _json(reply: httpx.Response, url: str) -> Any:
    if reply.status_code != 200:
        raise UserError(f"scorer {url}: status {reply.status_code}: {reply.text[:300]}")
    try:
        return reply.json()
    except ValueError as e:
        raise UserError(f"scorer {url}: not JSON: {reply.text[:120]!r}") from e


def _checked_rewards(rewards: Any, groups: Sequence[ScoreGroup], url: str) -> list[list[list[float]]]:
    """`rewards` as floats [group][response][dimension]; raises UserError on any other shape or value."""
    expected = [(len(g.responses), len(g.dimensions)) for g in groups]
    if not isinstance(rewards, list) or len(rewards) != len(groups):
        raise UserError(f"scorer {url}: expected rewards of {len(groups)} groups, got {str(rewards)[:120]!r}")
    for number, (group, (n_responses, n_dimensions)) in enumerate(zip(rewards, expected, strict=True)):
        rows = group if isinstance(group, list) else []
        if len(rows) != n_responses or any(not isinstance(r, list) or len(r) != n_dimensions for r in rows):
            raise UserError(
                f"scorer {url}: rewards of group {number} are not {n_responses} responses x {n_dimensions} dimensions: "
                f"{str(group)[:120]!r}"
            )
        for value in (v for row in rows for v in row):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"scorer {url}: group {number} holds {value!r}; a reward is a finite number")
    return [[[float(v) for v in row] for row in group] for group in rewards]


def _pauses(deadline: float):
    """Seconds to wait after each failed try, growing to 3.2, until the deadline has passed; at least one."""
    number = 0
    while True:
        left_s = deadline - time.monotonic()
        yield max(0.0, min(PAUSES_S[min(number, len(PAUSES_S) - 1)], left_s))
        number += 1
        if time.monotonic() >= deadline:
            return
