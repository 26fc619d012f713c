"""Which kernels are chosen, that this is said once, and that each kind of kernel gives the rewards of the others.

FlexAttention runs here without a compiler and forward only; flash_attn is stood in for by its documented contract.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from reward_model import attention
from reward_model.attention import Kernels, choose
from reward_model.model import RewardModel, from_base
from reward_model.packing import Branch, Packed, pack, pack_group, pack_sequence
from tests.tiny import tiny_model

BF16, FP32 = torch.bfloat16, torch.float32
SDPA = Kernels("sdpa", "sdpa")


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def model(request, tmp_path_factory) -> RewardModel:
    """Three query heads share a key head; the head spreads rewards."""
    path = tiny_model(tmp_path_factory.mktemp("m"), request.param, layers=2, hidden=96, heads=6, kv_heads=2)
    built = from_base(Path(path), layers=None, seed=0).eval()
    torch.nn.init.normal_(built.head.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return built


def ids(n: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 200, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


TREES = [
    pack_group(ids(90, 0), [ids(n, n) for n in (130, 40, 7)], [ids(5, 1), ids(4, 2)]),
    pack(ids(50, 3), [Branch(ids(6, i), attach=5 * i) for i in range(1, 8)]),
    pack_sequence(ids(20, 4)),
]


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "kernels"),
    [
        ("cpu", FP32, {"triton", "flash_attn"}, SDPA),
        ("cpu", BF16, {"triton", "flash_attn"}, SDPA),
        ("cuda", BF16, {"triton", "flash_attn"}, Kernels("flash_attn", "flex")),
        ("cuda", torch.float16, {"flash_attn"}, Kernels("flash_attn", "sdpa")),
        ("cuda", FP32, {"triton", "flash_attn"}, Kernels("sdpa", "flex")),
        ("cuda", BF16, {"triton"}, Kernels("sdpa", "flex")),
        ("cuda", BF16, set(), SDPA),
    ],
)
def test_kernels_are_chosen_by_what_is_there(device, dtype, installed, kernels):
    assert choose(device, dtype, installed.__contains__) == kernels


def test_the_choice_is_said_once(model, capsys):
    attention.chosen.cache_clear()
    with torch.no_grad():
        for tree in TREES:
            model(tree)
    said = capsys.readouterr().err.splitlines()
    assert said == ["[psychepass] attention on cpu in float32: trunk by sdpa, branches by sdpa"]


def rewards(model: RewardModel, monkeypatch, kernels: Kernels) -> torch.Tensor:
    monkeypatch.setattr(attention, "chosen", lambda device, dtype: kernels)
    with torch.no_grad():
        return torch.cat([model(tree) for tree in TREES])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_gives_the_same_rewards(model, monkeypatch):
    want = rewards(model, monkeypatch, SDPA)
    assert want.std() > 0.1
    assert (rewards(model, monkeypatch, Kernels("sdpa", "flex")) - want).abs().max() <= 2e-6


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_flex_mask_of_another_tree_is_far_outside(model, monkeypatch):
    want = rewards(model, monkeypatch, SDPA)

    def spoiled(packed: Packed):
        return right(pack(tuple(packed.input_ids_T[: packed.trunk].tolist()), [Branch((0,) * len(packed.seen_B), 1)]))

    right = attention.flex_mask
    monkeypatch.setattr(attention, "flex_mask", spoiled)
    assert (rewards(model, monkeypatch, Kernels("sdpa", "flex")) - want).abs().max() > 2e-4


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flash_attn_is_called_as_it_documents(model, monkeypatch):
    shapes = []

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        """[batch, tokens, heads, head dimension]; key and value may have fewer heads."""
        shapes.append((q.shape, k.shape))
        out = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal, scale=softmax_scale, enable_gqa=True
        )
        return out.transpose(1, 2)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))
    want = rewards(model, monkeypatch, SDPA)
    for branches in ("flex", "sdpa"):
        shapes.clear()
        assert (rewards(model, monkeypatch, Kernels("flash_attn", branches)) - want).abs().max() <= 2e-6
        assert shapes[0] == ((1, 90, 6, 16), (1, 90, 2, 16)) and len(shapes) == 2 * len(TREES)


def test_flex_lengths_are_rounded_up_so_that_few_kernels_are_made():
    lengths = {attention.flex_mask(tree).seq_lengths for tree in TREES[:2]}
    assert lengths == {(256, 384)}
    assert attention.flex_lengths(257, 384) == (384, 512) and attention.flex_lengths(300, 1000) == (384, 1024)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_trees_of_all_sizes_share_one_compiled_flex(model, monkeypatch):
    """Else torch.compile gives up after 8 of them, and what follows holds every score in memory."""
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(attention, "flex_attention", torch.compile(flex_attention, dynamic=True, backend=counted))
    monkeypatch.setattr(attention, "chosen", lambda device, dtype: Kernels("sdpa", "flex"))
    # tokens of context and reply, number of replies
    sizes = [(90, 130, 2), (500, 300, 3), (128, 250, 1), (20, 3, 1), (64, 56, 4), (384, 120, 2)]
    with torch.no_grad():
        for context, reply, replies in sizes:
            model(pack_group(ids(context, 0), [ids(reply, n) for n in range(replies)], [ids(8, 1), ids(8, 2)]))
    assert len(graphs) == 1


def test_a_flash_attn_that_cannot_be_used_is_said_and_left_alone(monkeypatch, capsys):
    monkeypatch.setattr(attention, "choose", lambda device, dtype: Kernels("flash_attn", "flex"))
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace())  # another package of that name
    attention.chosen.cache_clear()
    assert attention.chosen("cuda", BF16) == Kernels("sdpa", "flex")
    assert "flash_attn is installed, but cannot be used" in capsys.readouterr().err
    attention.chosen.cache_clear()


def test_under_autocast_attention_is_in_bf16(model):
    with torch.no_grad(), torch.autocast("cpu", dtype=BF16):
        low = torch.cat([model(tree) for tree in TREES])
    with torch.no_grad():
        full = torch.cat([model(tree) for tree in TREES])
    assert low.dtype == FP32 and 1e-6 < (low - full).abs().max() < 0.05
