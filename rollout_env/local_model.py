"""Local weights answering many conversations in one batch, on a CPU.

A conversation is asked with its whole prompt, as token ids. What of it the key-value cache already holds
is not computed again, so the cache changes the cost and never the prompt: a template that rewrites earlier
turns (Qwen3 drops their empty think block) merely shortens the reused part.

Draws depend on the seed of each reply alone, up to the rounding of logits, which batching changes by
about 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from psychepass.errors import UserError
from psychepass.matmul import fast_fp32
from psychepass.memory import give_back
from psychepass.schema import Sampling
from rollout_env.kv_cache import ATTENTION, NOWHERE, SlotCache, check_supported

PREFILL_TOKENS = 2048  # in one forward pass, padding included


@dataclass(frozen=True, slots=True)
class Request:
    """One reply wanted: the whole prompt as token ids, and how to draw the reply."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Token ids as drawn (with the end token, if `finished`), and the natural log-probability of each.

    Log-probabilities are of the softmax at the sampling temperature over the whole vocabulary, before
    top_p; at temperature 0 (greedy), at temperature 1.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool

    @property
    def logprob_mean(self) -> float:
        return sum(self.logprobs) / len(self.logprobs)


class LocalModel:
    """A causal language model with its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        check_supported(model.config)
        model.set_attn_implementation(ATTENTION)
        head = model.get_output_embeddings()
        if head is not None:
            # the last position of each row is a strided slice, for which torch would copy the head's weights once a row
            head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.end_ids = _end_ids(model, tokenizer)
        self.context_tokens = int(model.config.max_position_embeddings)

    @classmethod
    def load(cls, path: str | Path, threads: int | None = None) -> LocalModel:
        """Load a model folder in fp32; `threads` sets torch's intra-op threads for this process.

        Raises:
            UserError: it writes no prompt of a system's and a user's message, or begins the reply with a thought.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        fast_fp32()
        tokenizer = AutoTokenizer.from_pretrained(path)
        _check_chat(tokenizer, path)
        return cls(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), tokenizer)

    @property
    def bytes_per_token(self) -> int:
        """Of the key-value cache, in fp32."""
        config: Any = self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return 2 * 4 * config.num_hidden_layers * heads * head_dim

    def open(self, n_rows: int) -> Chat:
        """Room for `n_rows` conversations whose keys and values are kept between replies."""
        give_back()  # what an earlier chat held
        return Chat(self, n_rows)

    def generate(self, requests: Sequence[Request], max_rows: int = 64) -> list[Reply]:
        """One reply to each request. Requests of the same prompt share its encoding if they stand together.

        `max_rows` bounds the batch; a batch takes prompts of similar length.
        """
        prompts: dict[tuple[int, ...], list[int]] = {}
        for i, request in enumerate(requests):
            prompts.setdefault(tuple(request.prompt_ids), []).append(i)
        by_size: dict[int, list[list[int]]] = {}  # prompts asked equally often share batches
        for ids in sorted(prompts, key=len):
            indices = prompts[ids]
            for start in range(0, len(indices), max_rows):
                part = indices[start : start + max_rows]
                by_size.setdefault(len(part), []).append(part)
        replies: dict[int, Reply] = {}
        for size, groups in by_size.items():
            n_prompts = max(1, max_rows // size)
            for start in range(0, len(groups), n_prompts):
                batch = groups[start : start + n_prompts]
                order = [group[k] for k in range(size) for group in batch]
                chat = self.open(len(order))
                chat.encode_shared([requests[group[0]].prompt_ids for group in batch])
                drawn = chat.reply({row: requests[i] for row, i in enumerate(order)})
                replies |= {i: drawn[row] for row, i in enumerate(order)}
        return [replies[i] for i in range(len(requests))]


class Chat:
    """Rows of one batch and what the cache holds of each. Answered rows are moved to the front slots."""

    def __init__(self, owner: LocalModel, n_rows: int):
        self.owner = owner
        self.cache = SlotCache(owner.model.config.num_hidden_layers, n_rows)
        self.row_at = list(range(n_rows))  # slot -> row
        self.held: list[list[int]] = [[] for _ in range(n_rows)]  # row -> ids whose keys and values are held
        self.encoded_tokens = 0  # computed so far, without padding

    @torch.inference_mode()
    def reply(self, requests: Mapping[int, Request]) -> dict[int, Reply]:
        """A reply for each row asked; rows that are not asked keep what they hold.

        Raises:
            UserError: a prompt with its reply is longer than the model's context.
        """
        for row, request in requests.items():
            self._check_length(row, request)
        rows = self._to_front(sorted(requests, key=lambda r: len(requests[r].prompt_ids)))
        logits_NV = self._encode([requests[row].prompt_ids for row in rows])
        return self._decode({row: _Draw(requests[row]) for row in rows}, logits_NV)

    @torch.inference_mode()
    def encode_shared(self, prompts: Sequence[Sequence[int]]) -> None:
        """Fill an unused chat: row r holds prompt r modulo their number, each encoded once.

        The last token is left out, because a reply needs its logits.
        """
        n, short = len(prompts), [list(p[:-1]) for p in prompts]
        if n == len(self.held) or not all(short):
            return  # nothing to share
        self._to_front(list(range(n)))
        self._encode(short, logits=False)
        self.cache.repeat(n, max(map(len, short)))
        self.held = [list(short[row % n]) for row in range(len(self.held))]

    def _check_length(self, row: int, request: Request) -> None:
        prompt, reply, limit = len(request.prompt_ids), request.sampling.max_tokens, self.owner.context_tokens
        if not prompt:
            raise ValueError(f"row {row}: an empty prompt")
        if prompt + reply > limit:
            raise UserError(
                f"a prompt of {prompt} tokens and a reply of up to {reply} exceed the model's context of {limit}"
            )

    def _to_front(self, rows: Sequence[int]) -> list[int]:
        """Move rows to slots 0..n-1; returns them in slot order. Empty rows take the order given."""
        wanted, n = set(rows), len(rows)
        if not any(self.held):
            rest = [r for r in self.row_at if r not in wanted]
            self.row_at = [*rows, *rest]
        free = [slot for slot in range(n) if self.row_at[slot] not in wanted]
        for slot in range(n, len(self.row_at)):
            if self.row_at[slot] in wanted:
                self._swap(slot, free.pop())
        return self.row_at[:n]

    def _swap(self, a: int, b: int) -> None:
        if a != b:
            self.cache.swap(a, b, max(len(self.held[self.row_at[s]]) for s in (a, b)))
            self.row_at[a], self.row_at[b] = self.row_at[b], self.row_at[a]

    def _encode(self, prompts: Sequence[Sequence[int]], logits: bool = True) -> torch.Tensor:
        """Compute what the cache lacks of the prompts of slots 0..n-1; returns the last logits [N, V]."""
        todo: list[Sequence[int]] = []
        for slot, prompt in enumerate(prompts):
            row = self.row_at[slot]
            kept = min(_common(self.held[row], prompt), len(prompt) - 1)
            self.held[row] = list(prompt[:kept])
            todo.append(prompt[kept:])
        order = sorted(range(len(todo)), key=lambda slot: len(todo[slot]))  # little padding
        parts, start = [], 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * len(todo[order[stop]]) <= PREFILL_TOKENS:
                stop += 1
            parts.append(self._forward(order[start:stop], [todo[slot] for slot in order[start:stop]], logits))
            start = stop
        out = torch.cat(parts)
        return out[torch.tensor(order).argsort()]

    def _forward(self, slots: Sequence[int], new_ids: Sequence[Sequence[int]], logits: bool = True) -> torch.Tensor:
        """One pass over new tokens of some slots, padded on the left so that the last logits align."""
        held = [self.held[self.row_at[slot]] for slot in slots]
        n, width = len(new_ids), max(map(len, new_ids))
        ids_NT = torch.zeros(n, width, dtype=torch.long)
        positions_NT = torch.full((n, width), NOWHERE)
        for i, ids in enumerate(new_ids):
            ids_NT[i, width - len(ids) :] = torch.tensor(ids)
            positions_NT[i, width - len(ids) :] = torch.arange(len(held[i]), len(held[i]) + len(ids))
            held[i].extend(ids)
            self.encoded_tokens += len(ids)
        mask_N1TS = self.cache.aim(slots, positions_NT)
        arguments = {
            "attention_mask": mask_N1TS,
            "position_ids": positions_NT.clamp(min=0),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if not logits:
            return self.owner.model.base_model(ids_NT, **arguments).last_hidden_state[:, -1]
        return self.owner.model(ids_NT, **arguments, logits_to_keep=1).logits[:, -1].float()

    def _decode(self, draws: dict[int, _Draw], logits_NV: torch.Tensor) -> dict[int, Reply]:
        n = len(draws)
        while True:
            active = [draws[row] for row in self.row_at[:n]]
            tokens = _draw(logits_NV, active)
            ended = []
            for slot, (draw, token, logprob) in enumerate(zip(active, *tokens, strict=True)):
                if draw.add(token, logprob, self.owner.end_ids):
                    ended.append(slot)
            for slot in reversed(ended):
                n -= 1
                self._swap(slot, n)
            if not n:
                break
            logits_NV = self._forward(range(n), [draws[row].ids[-1:] for row in self.row_at[:n]])
        return {row: draw.reply(self.owner.tokenizer) for row, draw in draws.items()}


class _Draw:
    """A reply in the making. All its uniform numbers are drawn at once, from its own seed."""

    def __init__(self, request: Request):
        self.sampling = request.sampling
        generator = torch.Generator().manual_seed(request.seed)
        self.uniform = torch.rand(request.sampling.max_tokens, generator=generator, dtype=torch.float64).tolist()
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.finished = False

    def add(self, token: int, logprob: float, end_ids: frozenset[int]) -> bool:
        """Returns whether this was the last token."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.finished = token in end_ids
        return self.finished or len(self.ids) == self.sampling.max_tokens

    def reply(self, tokenizer: PreTrainedTokenizerBase) -> Reply:
        text = tokenizer.decode(self.ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return Reply(tuple(self.ids), tuple(self.logprobs), text, self.finished)


def _draw(logits_NV: torch.Tensor, draws: Sequence[_Draw]) -> tuple[list[int], list[float]]:
    """One token a row by the inverse of its cumulative distribution, and its log-probability."""
    temperature_N1 = torch.tensor([[d.sampling.temperature or 1.0] for d in draws])
    logprobs_NV = torch.log_softmax(logits_NV / temperature_N1, dim=-1)
    probs_NV = logprobs_NV.exp()
    if any(d.sampling.top_p < 1 for d in draws):
        probs_NV = _nucleus(probs_NV, torch.tensor([[d.sampling.top_p] for d in draws]))
    cumulative_NV = probs_NV.cumsum(-1)
    total_N1 = cumulative_NV[:, -1:]
    u_N1 = torch.tensor([[d.uniform[len(d.ids)]] for d in draws])
    # below the total, so that the token found has a probability above 0
    target_N1 = torch.minimum(u_N1 * total_N1, torch.nextafter(total_N1, torch.zeros(())))
    tokens_N1 = torch.searchsorted(cumulative_NV, target_N1, right=True)
    greedy_N1 = torch.tensor([[d.sampling.temperature == 0] for d in draws])
    tokens_N1 = torch.where(greedy_N1, logits_NV.argmax(-1, keepdim=True), tokens_N1)
    return tokens_N1[:, 0].tolist(), logprobs_NV.gather(1, tokens_N1)[:, 0].tolist()


def _nucleus(probs_NV: torch.Tensor, top_p_N1: torch.Tensor) -> torch.Tensor:
    """Zero what lies outside the smallest set of likeliest tokens whose probability reaches top_p."""
    sorted_NV, order_NV = probs_NV.sort(dim=-1, descending=True)
    outside_NV = (sorted_NV.cumsum(-1) - sorted_NV >= top_p_N1) & (top_p_N1 < 1)
    return torch.zeros_like(probs_NV).scatter(1, order_NV, sorted_NV.masked_fill(outside_NV, 0.0))


def _common(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Length of the common prefix."""
    for i, (a, b) in enumerate(zip(held, prompt, strict=False)):
        if a != b:
            return i
    return min(len(held), len(prompt))


def _check_chat(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Before anything is asked: a policy is shown a system prompt, and what it answers is taken as said."""
    asked = [{"role": "system", "content": "Listen."}, {"role": "user", "content": "Hello."}]
    try:
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    except (ValueError, TemplateError) as e:  # there is none, or it refuses a system's message
        raise UserError(f"{path}: its tokenizer writes no system prompt: {' '.join(str(e).split())[:200]}") from e
    if str(prompt).rstrip().endswith("<think>"):
        raise UserError(
            f"{path}: its chat template opens a thought before the reply; permitted: models that can answer"
        )


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured: Any = getattr(model.generation_config, "eos_token_id", None)
    found: list[Any] = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    ids = frozenset(i for i in found if isinstance(i, int))
    if not ids:
        raise UserError(f"{tokenizer.name_or_path}: neither tokenizer nor generation config names an end token")
    return ids
