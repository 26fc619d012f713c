"""What a try of a call is booked at: its line in the ledger, and the usage of a record."""

from __future__ import annotations

import math
import time

from psychepass.answers import Tried
from psychepass.endpoint import BYTES_PER_TOKEN, Endpoint, text_tokens
from psychepass.ledger import Call
from psychepass.schema import Usage


def line(
    endpoint: Endpoint, tried: Tried, asked: int, max_tokens: int, *, attempt: int, about: str, seconds: float
) -> Call:
    """The ledger's line; `asked` is the estimate of the prompt's tokens, `max_tokens` the bound of the reply."""
    price, found = endpoint.price, tried.completion
    prompt_tokens, reply_tokens, counted = _tokens(tried, asked, max_tokens)
    return Call(
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        about=about,
        base_url=endpoint.base_url,
        model=endpoint.model,
        served_model=found.model,
        attempt=attempt,
        outcome=tried.outcome,
        detail=tried.detail,
        finish=found.finish,
        prompt_tokens=prompt_tokens,
        completion_tokens=reply_tokens,
        counted=counted,
        seconds=round(seconds, 4),
        price=(price.input, price.output),
        cost_usd=price.usd(prompt_tokens, reply_tokens),
    )


def _tokens(tried: Tried, asked: int, max_tokens: int) -> tuple[int, int, bool]:
    """Of the prompt and of the reply, and whether the server has counted them."""
    found = tried.completion
    if found.text or found.fault:
        if found.prompt_tokens is not None and found.completion_tokens is not None:
            return found.prompt_tokens, found.completion_tokens, True
        return asked, text_tokens(found.text) + text_tokens(found.reasoning), False
    if tried.billed:  # no more than was set aside for it
        return asked, min(math.ceil(tried.received / BYTES_PER_TOKEN), max_tokens), False
    return 0, 0, True


def usage_of(call: Call) -> Usage:
    return Usage(
        calls=1,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        seconds=call.seconds,
        cost_usd=call.cost_usd,
    )
