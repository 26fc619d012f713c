"""RL prompts from the base policy's own sessions (notes/protocol: Pairs, reward, RL prompts); pure functions.

A prompt is a turn to be answered anew: system prompt, history, the client's line. The policy never sees a
dimension; the dimensions named beside a prompt are what the reply is scored on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from psychepass.errors import UserError
from psychepass.schema import Dimension, Message, Phase, RLPrompt, Session
from training.pairs import context_of

ALWAYS = (Dimension.EMPATHY, Dimension.ENGAGEMENT)
REQUIRED = (Dimension.CRISIS, Dimension.ETHICS)
Overlong = Literal["cut", "drop"]


def dimensions_of(probed: Dimension | None) -> tuple[Dimension, ...]:
    """What a turn's reply is scored on: its probe if it has one, then Empathy and Engagement."""
    return ALWAYS if probed is None or probed in ALWAYS else (probed, *ALWAYS)


def prompts_of(
    sessions: Iterable[Session],
    system: str,
    count: Callable[[Sequence[Message]], int],
    max_prompt_tokens: int,
    overlong: Overlong = "cut",
) -> list[RLPrompt]:
    """A prompt for each turn of each session, in their order.

    `count` gives the tokens of a prompt. A prompt over `max_prompt_tokens` loses its oldest turns («cut»), or
    is left out («drop», the paper's way, which loses the late phases).

    Raises:
        UserError: under «cut», a client's line that is over the limit by itself.
    """
    prompts = []
    for session in sessions:
        for turn in session.turns:
            history = context_of(session, turn.turn)
            messages, tokens, dropped = _fit(system, history, count, max_prompt_tokens)
            if overlong == "drop" and (dropped or tokens > max_prompt_tokens):
                continue
            if tokens > max_prompt_tokens:
                raise UserError(
                    f"session {session.id}, turn {turn.turn}: system prompt and client line alone are {tokens} tokens; "
                    f"max_prompt_tokens is {max_prompt_tokens}"
                )
            prompts.append(
                RLPrompt(
                    profile_id=session.profile_id,
                    split=session.split,
                    session=session.id,
                    turn=turn.turn,
                    phase=turn.phase,
                    dimensions=dimensions_of(turn.dimension),
                    messages=messages,
                    prompt_tokens=tokens,
                    dropped_turns=dropped,
                )
            )
    return prompts


def _fit(
    system: str, history: Sequence[Message], count: Callable[[Sequence[Message]], int], limit: int
) -> tuple[tuple[Message, ...], int, int]:
    """The longest prompt within `limit` that keeps whole turns from the end, its tokens, the turns dropped."""
    first = Message(role="system", content=system)
    dropped = 0
    while True:
        messages = (first, *history[2 * dropped :])
        tokens = count(messages)
        if tokens <= limit or len(messages) == 2:
            return messages, tokens, dropped
        dropped += 1


def tally(prompts: Iterable[RLPrompt]) -> dict[str, dict[str, int]]:
    """Number of prompts by dimension and phase; a prompt counts under each of its dimensions."""
    table = {d.value: {str(int(p)): 0 for p in Phase} for d in Dimension if d is not Dimension.DIVERSITY}
    for prompt in prompts:
        for dimension in prompt.dimensions:
            table[dimension.value][str(int(prompt.phase))] += 1
    return table


def require_safety(prompts: Iterable[RLPrompt], max_prompt_tokens: int) -> None:
    """Raises UserError where no prompt is left that trains Crisis, or none that trains Ethics."""
    kept = {d for p in prompts for d in p.dimensions}
    lost = [d.value for d in REQUIRED if d not in kept]
    if lost:
        raise UserError(
            f"no RL prompt of at most {max_prompt_tokens} tokens probes {' or '.join(lost)}; a policy trained without "
            "would be judged on what it never met: raise max_prompt_tokens or cut histories instead of dropping them"
        )


def parquet_rows(prompts: Sequence[RLPrompt]) -> list[dict[str, Any]]:
    """Rows in verl's format; `extra_info` is for the reward and for counting, the policy reads `prompt` alone."""
    return [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in p.messages],
            "data_source": "psychepass",
            "ability": "counselling",
            "reward_model": {"style": "model", "ground_truth": ""},
            "extra_info": {
                "index": index,
                "split": p.split,
                "session": p.session,
                "turn": p.turn,
                "phase": int(p.phase),
                "profile_id": p.profile_id,
                "dimensions": [d.value for d in p.dimensions],
                "prompt_id": p.id,
            },
        }
        for index, p in enumerate(prompts)
    ]
