"""Keys and values of many conversations in fixed places, written where they belong instead of concatenated.

Two costs of transformers' own path are avoided: its dynamic cache copies everything it holds at each
token, and its sdpa repeats the key-value heads for every query group as soon as there is a mask.

A conversation lives in a slot (a row of the buffers), its tokens from position 0 on. Letters in names:
N slots, H key-value heads, S positions, T new tokens, D head dimension.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from psychepass.errors import UserError
from psychepass.matmul import default_fp32

ATTENTION = "psychepass_sdpa"
GROWTH = 128  # positions by which the buffers grow
NOWHERE = -1  # where the keys of padding are written: the last position, which no query may see


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in transformers' calling form whose key-value heads are read, not repeated.

    The mask is boolean, True where a query may look. None is refused: transformers builds no mask for an
    attention function it does not know, and the result would be wrong without a word.
    """
    if attention_mask is None or attention_mask.dtype != torch.bool:
        raise ValueError(f"{ATTENTION} needs a boolean mask [N, 1, T, S]; it serves rollout_env.local_model only")
    with default_fp32():
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, grouped_sdpa)


def check_supported(config: PretrainedConfig) -> None:
    """Raises UserError for a model whose layers do not all attend to the whole past."""
    layers = getattr(config, "layer_types", None)
    other = sorted(set(layers or []) - {"full_attention"})
    window = getattr(config, "sliding_window", None)  # Mistral and Phi-3 name no layers: all have the window
    if window and not layers:
        other = [f"sliding_attention ({window:,} tokens)"]
    if other:
        raise UserError(f"model type {config.model_type!r} has layers of type {', '.join(other)}; only full_attention")


class SlotCache(Cache):
    """`n_slots` conversations. Before each forward pass, `aim` says which slots it is about, and where."""

    def __init__(self, n_layers: int, n_slots: int):
        self.n_slots = n_slots
        self.slots_N = torch.empty(0, dtype=torch.long)
        self.prefix: int | None = None  # the slots aimed at are the first so many, in order
        self.positions_NT = torch.empty(0, 0, dtype=torch.long)
        self.end = 0
        self.slot_layers = [SlotLayer(self) for _ in range(n_layers)]
        super().__init__(layers=[*self.slot_layers])

    def aim(self, slots: Sequence[int], positions_NT: torch.Tensor) -> torch.Tensor:
        """Direct the next forward pass to some slots; returns its mask [N, 1, T, S].

        `positions_NT` is the place of each new token in its conversation, NOWHERE for padding.
        """
        self.slots_N, self.positions_NT = torch.tensor(slots), positions_NT
        self.prefix = len(slots) if list(slots) == list(range(len(slots))) else None
        self.end = int(positions_NT.max()) + 1
        # padding looks at position 0, because a row of the mask without any True gives NaN
        return torch.arange(self.end) <= positions_NT.clamp(min=0)[:, None, :, None]

    def swap(self, a: int, b: int, length: int) -> None:
        """Exchange the first `length` positions of two slots."""
        for layer in self.slot_layers:
            for buffer_NHSD in (layer.keys, layer.values):
                if buffer_NHSD is not None:
                    buffer_NHSD[[a, b], :, :length] = buffer_NHSD[[b, a], :, :length]

    def repeat(self, n_filled: int, length: int) -> None:
        """Copy the first `length` positions of slots 0..n_filled-1 to all later blocks of that many slots."""
        for layer in self.slot_layers:
            for buffer_NHSD in (layer.keys, layer.values):
                assert buffer_NHSD is not None
                filled_NHSD = buffer_NHSD[:n_filled, :, :length]
                for start in range(n_filled, self.n_slots, n_filled):
                    buffer_NHSD[start : start + n_filled, :, :length] = filled_NHSD


class SlotLayer(CacheLayerMixin):
    """One layer's buffers, grown as the conversations get longer; unused positions are zero."""

    is_sliding = False

    def __init__(self, cache: SlotCache):
        super().__init__()
        # a cycle would keep gigabytes until Python's cycle collector happens to run
        self.cache: SlotCache = weakref.proxy(cache)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys = key_states.new_zeros(self.cache.n_slots, key_states.shape[1], 0, key_states.shape[3])
        self.values = value_states.new_zeros(self.cache.n_slots, value_states.shape[1], 0, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new states [N, H, T, D]; returns all states of the slots, up to the longest.

        They are views if the slots are the first ones, which is always so when decoding.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._written(self.keys, key_states)
        self.values = self._written(self.values, value_states)
        end, prefix = self.cache.end, self.cache.prefix
        if prefix is None:
            return self.keys[:, :, :end][self.cache.slots_N], self.values[:, :, :end][self.cache.slots_N]
        return self.keys[:prefix, :, :end], self.values[:prefix, :, :end]

    def _written(self, buffer_NHSD: torch.Tensor | None, new_NHTD: torch.Tensor) -> torch.Tensor:
        assert buffer_NHSD is not None
        n, h, s, d = buffer_NHSD.shape
        if s < self.cache.end + 1:  # one more for NOWHERE
            capacity = (self.cache.end // GROWTH + 1) * GROWTH
            grown = buffer_NHSD.new_zeros(n, h, capacity, d)
            grown[:, :, :s] = buffer_NHSD
            buffer_NHSD = grown
        buffer_NHSD[self.cache.slots_N[:, None], :, self.cache.positions_NT] = new_NHTD.transpose(1, 2)
        return buffer_NHSD

    def get_seq_length(self) -> int:
        return self.cache.end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.end, 0

    def get_max_cache_shape(self) -> int:
        return -1
