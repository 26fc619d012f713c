"""Attention of packed trees: one function for transformers, over the kernels that the machine has.

The trunk is causal and is computed alone; the branches then attend to trunk and branches under the mask that
packing.py describes. What computes which:
  trunk     flash_attn (FlashAttention 2, arXiv 2307.08691) on a GPU in half precision where it is installed,
            else PyTorch's SDPA, which on a GPU is a FlashAttention of its own
  branches  FlexAttention (arXiv 2412.05496) on a GPU: one kernel, which skips what the mask forbids
            else SDPA, a call for each block of branches: its backward pass works on a CPU, FlexAttention's does not
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from psychepass.run import say
from reward_model.packing import Packed, block_mask
from reward_model.ranks import rank_and_world

NAME = "psychepass_tree"
BUCKET = 128  # FlexAttention's block of queries or keys; lengths are rounded up to it, so that few kernels are made
aten = torch.ops.aten
ATTENTION_OPS = [  # of SDPA
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]


class Kernels(NamedTuple):
    """Names of what computes a tree's two parts: `trunk` is sdpa or flash_attn, `branches` sdpa or flex."""

    trunk: str
    branches: str


def choose(device: str, dtype: torch.dtype, installed: Callable[[str], object] = find_spec) -> Kernels:
    """The fastest exact kernels for a kind of device ("cpu", "cuda") and the type of queries, keys and values."""
    if device != "cuda":
        return Kernels("sdpa", "sdpa")
    half = dtype in (torch.float16, torch.bfloat16)
    return Kernels(
        trunk="flash_attn" if half and installed("flash_attn") else "sdpa",
        branches="flex" if installed("triton") else "sdpa",  # uncompiled, it would hold every score in memory
    )


@cache
def chosen(device: str, dtype: torch.dtype) -> Kernels:
    """`choose` for this process, which says so once."""
    kernels = choose(device, dtype)
    if kernels.trunk == "flash_attn":
        try:
            _flash_attn()
        except (ImportError, AttributeError) as e:  # made for another torch, or another package of that name
            say(f"flash_attn is installed, but cannot be used ({e}); SDPA takes its place")
            kernels = kernels._replace(trunk="sdpa")
    if rank_and_world()[0] == 0:
        say(f"attention on {device} in {str(dtype)[6:]}: trunk by {kernels.trunk}, branches by {kernels.branches}")
    return kernels


@dataclass(frozen=True)
class Plan:
    """What every layer needs to know of one tree; `masks`: its blocks' (see _additive), or FlexAttention's one."""

    packed: Packed
    kernels: Kernels
    masks: tuple[torch.Tensor, ...] | BlockMask


def plan(packed: Packed, dtype: torch.dtype, groups: int) -> Plan:
    """Prepared once a forward pass; `dtype` is that of the queries, of which `groups` heads share a key head."""
    kernels = chosen(packed.input_ids_T.device.type, dtype)
    if kernels.branches == "flex" and packed.blocks:
        return Plan(packed, kernels, flex_mask(packed))
    return Plan(packed, kernels, tuple(_additive(block_mask(packed, block), dtype, groups) for block in packed.blocks))


def _additive(mask: torch.Tensor, dtype: torch.dtype, groups: int) -> torch.Tensor:
    """0 where a query may look and -inf elsewhere, as SDPA would make of a boolean mask in every layer."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf).repeat(groups, 1)[None, None]


def flex_lengths(queries: int, keys: int) -> tuple[int, int]:
    """Lengths rounded up to BUCKET; at least two blocks of queries, and more keys than queries.

    torch.compile makes a kernel of its own for a length of one block, and where two lengths are equal; after 8 kernels
    it gives up and computes every score in memory.
    """
    n_queries = max(2 * BUCKET, queries + -queries % BUCKET)
    return n_queries, max(n_queries + BUCKET, keys + -keys % BUCKET)


def flex_mask(packed: Packed) -> BlockMask:
    """The branches' mask over all tokens, both of `flex_lengths`; what is only padding sees the first token."""
    device = packed.input_ids_T.device
    n_queries, n_keys = flex_lengths(len(packed.seen_B), packed.tokens)
    trunk = torch.tensor(packed.trunk, device=device)  # a number would be compiled into the kernel
    seen_Q = pad(packed.seen_B, (0, n_queries - len(packed.seen_B)), value=1)
    end_K = pad(packed.end_B, (packed.trunk, n_keys - packed.tokens))

    def visible(_b: Any, _h: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return torch.where(key < trunk, key < seen_Q[query], (key <= query + trunk) & (query < end_K[key]))

    return create_block_mask(visible, None, None, n_queries, n_keys, device=device, BLOCK_SIZE=BUCKET)


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    *,
    tree: Plan,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """transformers' calling form, for one tree; the model's forward hands `tree` through.

    query [1, H, T, E]; key and value may have fewer heads (grouped queries). Returns [1, T, H, E].
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # norms and rotary angles leave fp32
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    packed = tree.packed
    sizes = [packed.trunk, *(block.stop - block.start for block in packed.blocks)]
    (query_trunk, *queries), (key_trunk, *keys), (value_trunk, *values) = (
        x.split(sizes, dim=2) for x in (query, key, value)
    )
    parts = [TRUNK[tree.kernels.trunk](query_trunk, key_trunk, value_trunk, scaling)]
    if isinstance(tree.masks, BlockMask):
        parts.append(_flex(tree.masks, query[:, :, packed.trunk :], key, value, scaling))
    else:
        for block, mask, q, k, v in zip(packed.blocks, tree.masks, queries, keys, values, strict=True):
            k = torch.cat([key_trunk[:, :, : block.seen], k], dim=2)
            v = torch.cat([value_trunk[:, :, : block.seen], v], dim=2)
            parts.append(_sdpa_block(mask, q, k, v, scaling))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _sdpa_block(
    mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Query heads that share a key head stand below each other: no key is copied, and longer products are faster."""
    stacked = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
    found = sdpa(stacked, key, value, attn_mask=mask, scale=scaling)
    return found.unflatten(2, (-1, query.shape[2])).flatten(1, 2)


def _sdpa_trunk(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return sdpa(query, key, value, is_causal=True, scale=scaling)


def _flash_trunk(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    return _flash_attn()(
        *(x.transpose(1, 2) for x in (query, key, value)), softmax_scale=scaling, causal=True
    ).transpose(1, 2)


def _flash_attn() -> Callable[..., torch.Tensor]:
    """Queries, keys and values [1, T, H, E] to [1, T, H, E]. Raises ImportError or AttributeError."""
    return importlib.import_module("flash_attn").flash_attn_func


TRUNK = {"sdpa": _sdpa_trunk, "flash_attn": _flash_trunk}


def _flex(
    mask: BlockMask, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """All branches' queries [1, H, B, E] over all keys, rounded up to the mask's lengths and cut again."""
    n_queries, n_keys = mask.seq_lengths
    attend = _compiled_flex() if query.device.type == "cuda" else flex_attention
    found = attend(
        _filled(query, n_queries),
        _filled(key, n_keys),
        _filled(value, n_keys),
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found[:, :, : query.shape[2]]


def _filled(x: torch.Tensor, length: int) -> torch.Tensor:
    """Padded to so many tokens; contiguous, since other strides (nothing to pad) would make another kernel."""
    return pad(x, (0, 0, 0, length - x.shape[2])).contiguous()


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)


ALL_ATTENTION_FUNCTIONS.register(NAME, tree_attention)


def recompute(backbone: PreTrainedModel, whole: bool = False) -> None:
    """Gradient checkpointing that keeps what attention computed, as well as each layer's input.

    The layers' linear parts are computed a second time in the backward pass; attention by SDPA, whose cost grows with
    the square of a session, is not (flash_attn and FlexAttention are). `whole`: everything is computed again, for
    ZeRO-3, whose hooks gather weights between operations and so confuse torch's record of them. It acts in training
    mode.
    """
    kept: dict[str, Any] = {}
    if not whole:
        kept["context_fn"] = partial(create_selective_checkpoint_contexts, list(ATTENTION_OPS))
    backbone.gradient_checkpointing_enable({"use_reentrant": False, **kept})
