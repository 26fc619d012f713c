"""What one try of a call ended in, and what to do about it: the errors of psychepass/llm.py. Pure functions."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from psychepass.completion import Completion, ErrorBody, error_of, parse_body, read_completion
from psychepass.errors import UserError
from psychepass.schema import Usage

AGAIN = (408, 409, 425, 429)  # and 5xx
TELLING = (400, 413, 422)  # where the message says whether the prompt is too long or one parameter is wrong
NO_CREDIT = re.compile(r"insufficient[_ ](quota|balance|credit|funds)|credit balance|arrearage", re.IGNORECASE)
WRONG_KEY = re.compile(r"api[_ ]key", re.IGNORECASE)


class CallError(Exception):
    """A call that gave no reply. `reason` is short and the same for the same answer; `detail` may be empty."""

    def __init__(self, reason: str, detail: str = "", usage: Usage | None = None):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.usage = reason, detail, usage or Usage()


class Unreadable(CallError):
    """An answer that is no reply."""


class ContextOverflow(Unreadable):
    """Prompt and reply do not fit the model's context."""


class Transport(CallError):
    """No answer."""


class Refused(UserError):
    """The endpoint refuses every such call: key, model, parameter or credit."""


NOTHING = Completion()


@dataclass(frozen=True, slots=True)
class Tried:
    """One try. `error` is None for a reply; with `again` it is what a call ends in once its tries are used up.

    `wait_s`: how long the server asks to be left alone. `of_prompt`: a refusal that may be about this prompt alone.
    `billed`: a provider may bill it, though no completion came; `received`: bytes of it that came.
    """

    outcome: str
    completion: Completion = NOTHING
    error: type[CallError] | type[Refused] | None = None
    detail: str = ""
    again: bool = False
    wait_s: float = 0.0
    of_prompt: bool = False
    billed: bool = False
    received: int = 0


def classify(status: int, headers: Mapping[str, str], data: bytes) -> Tried:
    """What an HTTP response to a chat completion is; `headers` with lower-case names."""
    body = parse_body(data)
    error = error_of(body) if body is not None else None
    if status >= 300:
        return _refusal(status, error or ErrorBody(0, data[:200].decode(errors="replace")), headers)
    if body is None and "json" not in headers.get("content-type", "json"):
        # a proxy or a portal speaks here, not the model's server
        return Tried("not an API", error=Transport, detail=f"{data[:80]!r}", again=True)
    if body is None:
        detail = f"{len(data)} bytes"
        return Tried("broken JSON", error=Unreadable, detail=detail, again=True, billed=True, received=len(data))
    if error is not None:
        if error.status:
            return _refusal(error.status, error, headers)
        return _about_prompt(error) or Tried("error body", error=Unreadable, detail=error.message, again=True)
    completion = read_completion(body)
    if completion.fault:
        again = completion.fault == "broken off"
        return Tried(completion.fault, completion, Unreadable, completion.detail, again)
    return Tried("ok", completion)


def _refusal(status: int, error: ErrorBody, headers: Mapping[str, str]) -> Tried:
    outcome, told = f"status {status}", error.message
    no_credit = status == 402 or NO_CREDIT.search(told)
    if (status in AGAIN or status >= 500) and not no_credit:
        return Tried(outcome, error=Transport, detail=told, again=True, wait_s=retry_after_s(headers))
    if status in TELLING or (status == 403 and error.is_filtered):
        found = _about_prompt(error)
        if found:
            return found
    of_prompt = status in TELLING and not no_credit and not WRONG_KEY.search(told)
    # what an answer about a key says may repeat it
    return Tried(outcome, error=Refused, detail="" if status in (401, 403) else told, of_prompt=of_prompt)


def _about_prompt(error: ErrorBody) -> Tried | None:
    """Where the words say that this prompt is too long, or is not wanted."""
    if error.is_overflow:
        return Tried("context overflow", error=ContextOverflow, detail=error.message)
    if error.is_filtered:
        return Tried("content filter", error=Unreadable, detail=error.message)
    return None


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that `retry-after-ms` or `retry-after` (seconds or a date) ask for; 0 without."""
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            return max(0.0, float(value) * unit_s)
        except ValueError:
            continue
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
