"""configs/grpo.yaml in verl's own terms: composed, validated, and strict about keys, on any machine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from psychepass import config as configs
from psychepass.errors import UserError
from psychepass.run import stage_run
from rl import verl_config
from rl.config import GRPOConfig
from rl.train import FREE, overrides_of, production_config, total_steps
from tests.conftest import ROOT
from tests.tiny import tiny_model

PRODUCTION = ROOT / "configs" / "grpo.yaml"
QUICKSTART = ROOT / "configs" / "quickstart" / "grpo.yaml"


def load(path: Path, *overrides: str) -> GRPOConfig:
    return configs.load(GRPOConfig, path, list(overrides))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> verl_config.Files:
    folder = tmp_path_factory.mktemp("grpo")
    return verl_config.Files(tiny_model(folder), folder / "train.parquet", folder / "dev.parquet", folder)


@pytest.mark.filterwarnings("default")  # verl's imports
@pytest.mark.parametrize("path", [PRODUCTION, QUICKSTART])
def test_verl_accepts_both_configs(path: Path, files: verl_config.Files) -> None:
    composed = verl_config.verl_config(load(path), files, n_layers=36)
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    assert need_reference_policy(composed)
    assert not need_critic(composed)
    validate_config(composed, use_reference_policy=True, use_critic=False)
    assert not OmegaConf.missing_keys(composed.actor_rollout_ref)


def test_the_papers_values(files: verl_config.Files) -> None:
    composed = verl_config.verl_config(load(PRODUCTION), files, n_layers=36)
    paper = {
        "algorithm.adv_estimator": "grpo",
        "data.train_batch_size": 112,
        "data.max_prompt_length": 4000,
        "actor_rollout_ref.rollout.n": 8,
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.actor.optim.lr": 3e-6,
        "actor_rollout_ref.actor.use_kl_loss": True,
        "actor_rollout_ref.actor.kl_loss_coef": 0.001,
        "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
        "actor_rollout_ref.actor.entropy_coeff": 0,
        "actor_rollout_ref.actor.fsdp_config.param_offload": True,
        "actor_rollout_ref.actor.fsdp_config.optimizer_offload": True,
        "trainer.total_epochs": 3,
        "trainer.n_gpus_per_node": 7,
    }
    assert {key: OmegaConf.select(composed, key) for key in paper} == paper
    assert total_steps(load(PRODUCTION), 2000) == 3 * 17


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "sdpa"),  # an import of it fails
        (SimpleNamespace(), "sdpa"),  # another package of that name
        (SimpleNamespace(flash_attn_func=print), "flash_attention_2"),
    ],
)
def test_attention_on_gpus_is_one_that_can_be_used(
    files: verl_config.Files, monkeypatch: pytest.MonkeyPatch, found: object, said: str
) -> None:
    config = load(PRODUCTION)
    monkeypatch.setitem(sys.modules, "flash_attn", found)
    assert verl_config._on_gpu(config)["actor_rollout_ref.model.override_config.attn_implementation"] == said


def test_a_run_goes_on_with_other_memory_and_no_other_batch(tmp_path: Path) -> None:
    with stage_run("grpo", load(QUICKSTART, f"run={tmp_path}"), ignore=FREE):
        pass
    free = ["tokens_per_worker=9000", "gpu_memory_utilization=0.3", "save_every=3"]
    with stage_run("grpo", load(QUICKSTART, f"run={tmp_path}", *free), ignore=FREE) as run:
        assert run.done
    changed = load(QUICKSTART, f"run={tmp_path}", "learning_rate=1e-6")
    with pytest.raises(UserError, match="learning_rate: was"), stage_run("grpo", changed, ignore=FREE):
        raise AssertionError("must not run")


def test_a_key_that_verl_does_not_have_is_refused(files: verl_config.Files) -> None:
    composed = verl_config.verl_config(load(QUICKSTART), files, n_layers=30)
    with pytest.raises(UserError, match=r"verl has no key 'data.trian_batch_size' \(value 4\)"):
        verl_config.apply(composed, {"data.trian_batch_size": 4})


def test_the_quickstart_changes_sizes_learning_rate_and_lora_only(files: verl_config.Files) -> None:
    assert production_config(str(QUICKSTART)) == load(PRODUCTION)
    changed = {row["key"] for row in overrides_of(load(QUICKSTART), load(PRODUCTION))}
    sizes = {
        *("batch_size", "responses", "steps", "workers", "max_prompt_tokens", "max_response_tokens"),
        *("tokens_per_worker", "validation_prompts", "validate_every", "save_every"),
    }
    assert changed <= sizes | {"model", "hardware", "learning_rate", "lora"}
    rows = verl_config.hardware_differences(load(PRODUCTION), load(QUICKSTART), files, n_layers=30)
    by_key = {row["key"]: (row["production"], row["here"]) for row in rows}
    assert by_key["verl: actor_rollout_ref.rollout.name"] == ("vllm", "hf_cpu")


def test_lora_names_the_top_layers_only(files: verl_config.Files) -> None:
    import re

    config = load(QUICKSTART, "lora.top_layers=2")
    pattern = verl_config.settings(config, files, n_layers=30)["actor_rollout_ref.model.target_modules"]
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(30)] + ["lm_head", "model.layers.29.mlp.act_fn"]
    assert [n for n in names if re.fullmatch(pattern, n)] == names[28:30]
    with pytest.raises(UserError, match=r"lora\.top_layers: 2 is more than the 1 layers"):
        verl_config.settings(config, files, n_layers=1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=5", "batch_size 5 must be divisible by workers"),
        ("responses=1", "responses: Input should be greater than or equal to 2, got 1"),
        ("learning_rate=0", "learning_rate: Input should be greater than 0"),
        ("hardware=tpu", "hardware: Input should be 'gpu' or 'cpu', got 'tpu'"),
        ("lerning_rate=1e-4", "unknown key 'lerning_rate'"),
        ("tokens_per_worker=300", "tokens_per_worker 300 must hold one prompt and response"),
    ],
)
def test_bad_values_are_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(QUICKSTART, "workers=2", override)
