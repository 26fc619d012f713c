"""THE text of (context, response, dimension): training, evaluation, serving and RL all come here.

    [bos] Client: LINE <eos> Therapist: REPLY <eos> … Client: LINE <eos> Therapist: RESPONSE <eos>
    Quality, empathy: <eos>

The format is our own and stable at the level of token ids: each segment is encoded alone and ends in the
tokenizer's eos, so the ids up to turn t are a prefix of the ids up to turn t + k under any tokenizer, and the
dimension comes last, so all dimensions share context and response. The hidden state of the very last token
is scored. Special tokens that stand in a text are encoded as plain characters: no reply can forge a segment.

Only what client and therapist said and the dimension's name enter: no evaluator layer, judge reason or
feature, and no system prompt (paper, section 3.3: the reward is given context and dimension).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psychepass.errors import UserError
from psychepass.schema import Dimension, Message

Ids = tuple[int, ...]


class Renderer:
    """Renders for one Hugging Face tokenizer and one token budget.

    A whole sequence has at most `max_tokens` ids, of which `max_response` are kept for the response segment
    and some for the dimension. The history is cut from the left at turn boundaries to what remains; the cut
    depends on the context alone, so a reply's score does not depend on what else is scored beside it.

    Raises:
        UserError: a tokenizer without eos, or budgets that leave no room for a context.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, max_response: int):
        if tokenizer.eos_token_id is None:
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise UserError(f"{name}: the reward text needs a tokenizer with an eos token, which ends each segment")
        self._tokenizer = tokenizer
        self._eos: int = tokenizer.eos_token_id
        self.head = self._head()
        self._suffixes = {d: self._segment(f"Quality, {d.value}:") for d in Dimension}
        self.max_tokens, self.max_response = max_tokens, max_response
        self.max_trunk = max_tokens - max(len(s) for s in self._suffixes.values())
        self.max_context = self.max_trunk - max_response
        if self.max_context <= len(self.head):
            raise UserError(f"max_length {max_tokens} leaves no room for a context beside max_response {max_response}")

    def client(self, line: str) -> Ids:
        """The ids of a client's line."""
        return self._segment(f"Client: {line.strip()}")

    def therapist(self, reply: str) -> Ids:
        """The ids of a therapist's reply, which may be empty. It is never cut."""
        return self._segment(f"Therapist: {reply.strip()}")

    def response(self, reply: str) -> Ids:
        """As `therapist`, for a reply that is to be scored.

        Raises:
            UserError: longer than `max_response` tokens.
        """
        ids = self.therapist(reply)
        if len(ids) > self.max_response:
            raise UserError(
                f"a response of {len(ids)} tokens is longer than max_response = {self.max_response}: {reply[:60]!r}…"
            )
        return ids

    def dimension(self, dimension: Dimension) -> Ids:
        """The suffix that asks for a dimension, after the response."""
        return self._suffixes[dimension]

    def context(self, messages: Sequence[Message]) -> Ids:
        """A conversation that ends with the client, cut from the left to the budget.

        Raises:
            UserError: the client's last line alone is over the budget.
        """
        segments = [self.client(m.content) if m.role == "user" else self.therapist(m.content) for m in messages]
        turns = [sum(segments[i : i + 2], ()) for i in range(0, len(segments), 2)]
        start = keep_from([len(t) for t in turns], self.max_context - len(self.head))
        if start == len(turns):
            raise UserError(f"the client's last line alone is longer than the context's {self.max_context} tokens")
        return sum(turns[start:], self.head)

    def sequence(self, messages: Sequence[Message], reply: str, dimension: Dimension) -> Ids:
        """The whole text as ids: the naive form, which packing must equal."""
        return self.context(messages) + self.response(reply) + self.dimension(dimension)

    def _segment(self, text: str) -> Ids:
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return (*ids, self._eos)

    def _head(self) -> Ids:
        bos = self._tokenizer.bos_token_id
        return (bos,) if bos is not None and self._tokenizer.encode("")[:1] == [bos] else ()


def keep_from(lengths: Sequence[int], budget: int) -> int:
    """The first of the turns that fit into `budget` tokens, counted from the end; len(lengths) if none fits."""
    start = len(lengths)
    while start > 0 and lengths[start - 1] <= budget:
        start -= 1
        budget -= lengths[start]
    return start


def conversation(messages: Sequence[Message], reply: str, dimension: Dimension) -> list[dict[str, str]]:
    """The same content as chat messages for other trainers: the dimension first, as a system message."""
    asked = {"role": "system", "content": f"Quality, {dimension.value}"}
    said = [{"role": m.role, "content": m.content} for m in messages]
    return [asked, *said, {"role": "assistant", "content": reply}]
