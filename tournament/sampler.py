"""A policy answers prompts anew: the same words a therapist would be shown, several replies each."""

from __future__ import annotations

from collections.abc import Sequence

from psychepass.schema import Sampling, content_hash
from psychepass.weights import resolve
from rollout_env.therapist import (
    Conversation,
    LocalTherapists,
    RuleTherapists,
    TherapistEntry,
    fitted_ids,
    system_prompt,
)
from tournament.paired_rewards import Prompt


class Sampler:
    """`samples` replies to each prompt; the draw depends on the prompt, the sample's number and the entry's seed.

    Rules without chance give the same reply each time. A reply with nothing in it is drawn once more with
    another seed, as in a session; if that is empty too, it is left out.
    """

    def __init__(
        self, entry: TherapistEntry, target_words: int, sampling: Sampling, samples: int, rows: int, cache_gib: float
    ):
        self.entry, self.samples, self.rows = entry, samples, rows
        self.sampling = entry.sampling or sampling
        self.system = system_prompt(entry.prompt, target_words) if entry.prompt else ""
        self.speaker = (
            RuleTherapists(entry.rules) if entry.rules else LocalTherapists(resolve(str(entry.weights)), cache_gib)
        )

    def answer(self, prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
        asked = [self._ask(p, sample, 0) for p in prompts for sample in range(self.samples)]
        texts = self._draw(asked)
        empty = [i for i, text in enumerate(texts) if not text]
        if empty:
            again = [self._ask(prompts[i // self.samples], i % self.samples, 1) for i in empty]
            for i, text in zip(empty, self._draw(again), strict=True):
                texts[i] = text
        of_prompt = (texts[i : i + self.samples] for i in range(0, len(texts), self.samples))
        return [tuple(t for t in part if t) for part in of_prompt]

    def _ask(self, prompt: Prompt, sample: int, attempt: int) -> Conversation:
        return conversation(self.entry, self.system, self.sampling, prompt, sample, attempt)

    def _draw(self, asked: Sequence[Conversation]) -> list[str]:
        if isinstance(self.speaker, RuleTherapists):
            return [a.text for a in self.speaker.reply(asked)]
        from rollout_env.local_model import Request

        model = self.speaker.model
        limit = model.context_tokens - self.sampling.max_tokens
        requests = [Request(fitted_ids(model.tokenizer, c, limit), c.sampling, c.seed) for c in asked]
        return [r.text.strip() for r in model.generate(requests, max_rows=self.rows)]


def conversation(
    entry: TherapistEntry, system: str, sampling: Sampling, prompt: Prompt, sample: int, attempt: int
) -> Conversation:
    """The prompt as the policy is asked it for its sample of that number; another `attempt` is another draw."""
    said = [m.content for m in prompt.context]
    return Conversation(
        key=f"{prompt.session} {prompt.turn} {sample}",
        seed=int(content_hash([entry.seed, prompt.session, prompt.turn, sample, attempt]), 16) >> 1,
        system=system,
        history=tuple(zip(said[:-1:2], said[1::2], strict=True)),
        client=said[-1],
        sampling=sampling,
    )
