"""Options of stage rm in one process: adapters, recomputed layers, the paper's step of pairs, faults in training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from psychepass.cli import main as cli
from psychepass.config import load as load_config
from psychepass.schema import Dimension
from reward_model import attention, lora
from reward_model import model as models
from reward_model.data import Ask, encode_session
from reward_model.fit import build
from reward_model.packing import Packed
from reward_model.train import RMConfig
from tests.made import identity, session
from tests.test_reward_model import log_of, write_config, write_run
from tests.tiny import tiny_model, tiny_tokenizer
from training.render import Renderer

LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tree() -> Packed:
    asks = [Ask(6, Dimension.CRISIS), Ask(10, Dimension.MEMORY)]
    return encode_session(session("p1", identity("a")), asks, Renderer(tiny_tokenizer(), 2048, 128))[0][0]


def config_of(folder: Path, base: Path, **changes) -> RMConfig:
    return load_config(RMConfig, write_config(folder, folder, base, **changes))


def test_merged_adapters_give_the_rewards_of_adapters(base, tree, tmp_path):
    model = build(config_of(tmp_path, base, lora=LORA), base)
    plain = model(tree)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    adapted = model(tree)
    assert (adapted - plain).abs().max() > 1e-3
    lora.merge(model)
    assert not any("lora" in n for n in model.state_dict())
    assert torch.allclose(model(tree), adapted, atol=1e-5)


def test_adapters_and_head_alone_are_trained_and_frozen_weights_are_bf16(base, tmp_path):
    model = build(config_of(tmp_path, base, lora=LORA, precision="bf16"), base)
    for name, parameter in model.named_parameters():
        trained = "lora_" in name or name == "head.weight"
        assert parameter.requires_grad == trained, name
        assert parameter.dtype == (torch.float32 if trained else torch.bfloat16), name
    assert sum("lora_A" in n for n, _ in model.named_parameters()) == 7  # q k v o gate up down of one layer


def test_a_model_trained_by_adapters_is_saved_as_a_plain_one(base, tmp_path):
    run = write_run(tmp_path / "run")
    assert cli(["rm", str(write_config(tmp_path, run, base, lora=LORA, learning_rate=0.02, precision="bf16"))]) == 0
    assert log_of(run)[-1]["loss"] < log_of(run)[0]["loss"]
    saved, before = models.load(run / "reward_model")[0].state_dict(), models.from_base(base, 1, 0).state_dict()
    assert saved.keys() == before.keys()
    changed = {
        n for n in before if not torch.allclose(saved[n].float(), before[n], atol=2e-3)
    }  # bf16 rounds below that
    assert "backbone.layers.0.self_attn.q_proj.weight" in changed and "head.weight" in changed
    assert "backbone.embed_tokens.weight" not in changed


def test_rewards_are_those_of_the_forward_pass_that_was_trained(base, tree, tmp_path):
    run = write_run(tmp_path / "run")
    assert cli(["rm", str(write_config(tmp_path, run, base, precision="bf16"))]) == 0
    served, _, card = models.load(run / "reward_model")
    assert card.precision == "bf16"
    plain, _ = models._read(run / "reward_model")
    plain.eval().requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):  # as the Trainer runs it
        trained = plain(tree)
    assert torch.equal(served(tree), trained) and trained.dtype == torch.float32
    assert (plain(tree) - trained).abs().max() > 1e-5  # fp32 gives others
    kept = {n: p.dtype for n, p in served.named_parameters()}
    assert {n for n, d in kept.items() if d == torch.bfloat16} == {n for n in kept if "proj" in n}


class Count(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def test_recomputed_layers_give_the_same_gradient_and_attention_is_kept(base, tree, tmp_path):
    found, products = [], []
    for again in (False, True):
        model = build(config_of(tmp_path, base, gradient_checkpointing=again), base).train(again)
        reward = model(tree).sum()
        with Count() as backward:
            reward.backward()
        products.append(backward.calls[torch.ops.aten.mm.default])
        assert not any(backward.calls[op] for op in attention.ATTENTION_OPS)
        assert backward.calls[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default] == 2
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert products[1] > products[0] > 0  # linear layers ran again
    assert (found[0] - found[1]).norm() / found[0].norm() < 1e-6


def test_a_step_of_so_many_pairs_whoever_their_clients_are(base, tmp_path):
    run = write_run(tmp_path / "run")
    assert cli(["rm", str(write_config(tmp_path, run, base, pairs_per_step=32, epochs=2))]) == 0
    rows = log_of(run)
    assert [r["pairs"] for r in rows] == [32, 32, 5] * 2  # 69 pairs of 3 clients
    assert [r["tokens"] for r in rows[:3]] != [r["tokens"] for r in rows[3:]]  # shuffled anew


def test_faults_are_one_clear_error(base, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert cli(["rm", str(write_config(tmp_path, run, base, lora=LORA, train_layers=1))]) == 2
    assert "train_layers must be null, not 1" in capsys.readouterr().err
    assert cli(["rm", str(write_config(tmp_path, run, base, lora={"rank": 0, "alpha": 1}))]) == 2
    assert "lora.rank" in capsys.readouterr().err
    broken = tiny_model(tmp_path)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("inf"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    assert cli(["rm", str(write_config(tmp_path, run, broken))]) == 2
    assert "the loss of step 1 (clients p" in capsys.readouterr().err
