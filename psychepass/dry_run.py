"""`--dry-run`: calls, tokens and cost by model, before anything is asked or written.

A stage that calls models has `dry_run(config_path, overrides)`, which counts what is still to be asked and gives
the counts to `table`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from psychepass.endpoint import Price

TOKENS_PER_WORD = 1.4
COLUMNS = ("model", "calls", "prompt tokens", "reply tokens", "USD", "at most: prompt", "reply", "USD")


@dataclass(frozen=True, slots=True)
class Planned:
    """The calls of one model, retries not counted. Prompt tokens are estimates; no reply passes its token bound."""

    model: str
    price: Price
    calls: int
    prompt_tokens: int
    reply_tokens: int
    most_prompt_tokens: int
    most_reply_tokens: int

    @property
    def usd(self) -> float:
        return self.price.usd(self.prompt_tokens, self.reply_tokens)

    @property
    def most_usd(self) -> float:
        return self.price.usd(self.most_prompt_tokens, self.most_reply_tokens)


def word_tokens(words: float) -> int:
    """An estimate of the tokens of so many words."""
    return math.ceil(TOKENS_PER_WORD * words)


def table(planned: Sequence[Planned], budget_usd: float | None = None, spent_usd: float = 0.0) -> str:
    """The lines that --dry-run prints: a row a model, the total, and what the budget allows."""
    rows = [
        (
            *(p.model, f"{p.calls:,}", f"{p.prompt_tokens:,}", f"{p.reply_tokens:,}", f"{p.usd:.4f}"),
            *(f"{p.most_prompt_tokens:,}", f"{p.most_reply_tokens:,}", f"{p.most_usd:.4f}"),
        )
        for p in planned
    ]
    usd, most_usd = sum(p.usd for p in planned), sum(p.most_usd for p in planned)
    total = ("total", f"{sum(p.calls for p in planned):,}", "", "", f"{usd:.4f}", "", "", f"{most_usd:.4f}")
    grid = [COLUMNS, *rows, total]
    widths = [max(len(row[i]) for row in grid) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in grid
    ]
    return "\n".join([*lines, _budget(usd, most_usd, budget_usd, spent_usd)])


def _budget(usd: float, most_usd: float, budget_usd: float | None, spent_usd: float) -> str:
    if budget_usd is None:
        return "no budget_usd is set"
    left = budget_usd - spent_usd
    enough = "at most, retries aside" if most_usd <= left else "as expected" if usd <= left else ""
    judgement = f"enough for the cost {enough}" if enough else "NOT enough: the stage will stop before it is passed"
    return f"budget_usd {budget_usd}, spent {spent_usd:.4f}, left {left:.4f}: {judgement}"
