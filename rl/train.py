"""Stage `grpo`: align the policy with GRPO on verl (PsychePass section 3.3), then export it.

Reads <run>/prompts.parquet, <run>/data.json and the scorer; writes <run>/grpo/ and <run>/policy/. A killed
stage goes on from its last complete checkpoint.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from psychepass import config as configs
from psychepass import records
from psychepass.errors import UserError
from psychepass.run import StageRun, say, stage_run
from psychepass.scoring import Scorer
from rl.config import GRPOConfig

IGNORED = frozenset({"run", "wandb", "ray_address", "scorer_url", "scorer_timeout_s", "group_timeout_s"})
# how the same steps fit into memory, and how often they are saved: a run that ran out of it goes on with other values
FREE = IGNORED | {"tokens_per_worker", "gpu_memory_utilization", "tensor_parallel", "save_every"}


def main(config_path: str, overrides: list[str]) -> None:
    config = configs.load(GRPOConfig, config_path, overrides)
    run_dir = Path(config.run)
    inputs = [run_dir / "prompts.parquet", *([run_dir / "data.json"] if config.likelihood_guard else [])]
    with stage_run("grpo", config, inputs, ignore=FREE) as run:
        if not run.done:
            align(config, run, production_config(config_path))


def align(config: GRPOConfig, run: StageRun, production: GRPOConfig) -> None:
    """Train up to the last step, export, and note what came out."""
    from transformers import AutoConfig, AutoTokenizer

    from psychepass import weights
    from rl import checkpoints, prompts, verl_config

    folder = run.dir.resolve() / "grpo"
    folder.mkdir(parents=True, exist_ok=True)
    _set_environment(config, folder)  # before verl is imported
    model = Path(weights.resolve(config.model)).resolve()
    split = prompts.split_prompts(run.dir / "prompts.parquet", folder, config, AutoTokenizer.from_pretrained(model))
    files = verl_config.Files(model=model, train=split["train"], dev=split["dev"], grpo=folder)
    n_layers = int(AutoConfig.from_pretrained(model).num_hidden_layers)
    rows = overrides_of(config, production)
    rows += verl_config.hardware_differences(production, config, files, n_layers)
    records.write_json(folder / "overrides.json", rows)
    last_step = total_steps(config, prompts.count(files.train))
    done_step = checkpoints.settle(folder)
    if done_step < last_step:
        scorer = Scorer.of_run(run.dir, config.scorer_url, config.scorer_timeout_s)
        _refuse_other_rewards(run, scorer)
        say(f"grpo: steps {done_step + 1} to {last_step}, rewards from {scorer.model} at {scorer.url}")
        cautions = scorer.warnings(d for path in split.values() for d in prompts.dimensions_in(path))
        run.note(warnings=cautions)
        for caution in cautions:
            say(f"grpo: {caution}")
        fixed = config.model_copy(update={"steps": last_step})
        _train(fixed, scorer, files, n_layers, _band(config, run.dir), resumed=done_step > 0)
    _export(config, run, files, last_step)


def _refuse_other_rewards(run: StageRun, scorer: Scorer) -> None:
    """One run is aligned by one reward model, also where it is resumed."""
    before = run.manifest["notes"].get("reward_model")
    if before not in (None, scorer.model):
        raise UserError(
            f"{run.path}: the steps so far were rewarded by {before!r}, the scorer at {scorer.url} has "
            f"{scorer.model!r}; serve {before!r} again, or use another run directory"
        )
    run.note(reward_model=scorer.model)


def _set_environment(config: GRPOConfig, folder: Path) -> None:
    from rl import verl_config

    os.environ |= verl_config.environment(config)
    os.environ |= {"WANDB_MODE": config.wandb or "disabled", "WANDB_DIR": str(folder)}
    os.environ.setdefault("WANDB_X_SERVICE_WAIT", "300")  # its own process is given 30 s to start otherwise
    os.environ.setdefault("HF_DATASETS_CACHE", str(folder / "cache"))


def total_steps(config: GRPOConfig, n_prompts: int) -> int:
    """Epochs of whole batches, or `steps` if that is less."""
    by_epochs = config.epochs * (n_prompts // config.batch_size)
    return by_epochs if config.steps is None else min(config.steps, by_epochs)


def _train(
    config: GRPOConfig, scorer: Scorer, files: Any, n_layers: int, band: tuple[float, float] | None, resumed: bool
) -> None:
    """verl's loop with this process as its controller.

    verl puts the controller into an actor of its own; here it stays in the stage, so that an error arrives
    as itself and one process less is started.
    """
    from omegaconf import OmegaConf

    from rl import verl_config
    from rl.ray_session import ray_session

    resolved = verl_config.verl_config(config, files, n_layers)
    resolved.trainer.val_before_train = not resumed
    OmegaConf.save(OmegaConf.create(verl_config.agent_loop_yaml(config, scorer)), files.grpo / "agent_loop.yaml")
    OmegaConf.save(resolved, files.grpo / "verl.yaml")
    on_cpu = config.hardware == "cpu"
    with ray_session(files.grpo, verl_config.environment(config), config.workers, on_cpu, config.ray_address):
        # of engines that are not installed, and of verl's own deprecated functions
        warnings.filterwarnings("ignore", module=r"verl\.|torchdata\.")
        from rl.controller import fit

        fit(resolved, files.grpo, band)


def _band(config: GRPOConfig, run_dir: Path) -> tuple[float, float] | None:
    """The dev replies' 1 % and 99 % quantiles of mean log-probability a token (data.json: logprob_band)."""
    if not config.likelihood_guard:
        return None
    path = run_dir / "data.json"
    band = records.read_json(path).get("logprob_band")
    if not isinstance(band, list) or len(band) != 2 or not band[0] < band[1]:
        raise UserError(f"{path}: logprob_band is {band!r}; expected [low, high], or set likelihood_guard=false")
    return float(band[0]), float(band[1])


def production_config(config_path: str) -> GRPOConfig:
    """The file at the root of `extends`: what this run departs from."""
    from omegaconf import OmegaConf

    path = Path(config_path)
    while (parent := OmegaConf.select(OmegaConf.load(path), "extends")) is not None:
        path = path.parent / str(parent)
    return configs.load(GRPOConfig, path)


def overrides_of(config: GRPOConfig, production: GRPOConfig) -> list[dict[str, Any]]:
    """Each key of ours whose value differs from production's."""
    there, here = production.model_dump(mode="json"), config.model_dump(mode="json")
    return [
        {"key": key, "production": there[key], "here": value}
        for key, value in here.items()
        if key not in IGNORED and value != there[key]
    ]


def _export(config: GRPOConfig, run: StageRun, files: Any, last_step: int) -> None:
    from rl.export import export_policy

    lines = [*_jsonl(files.grpo / "metrics.jsonl")]
    steps = [line["step"] for line in lines]
    if steps != list(range(1, last_step + 1)):
        raise UserError(f"{files.grpo / 'metrics.jsonl'}: steps {steps}, expected 1 to {last_step}")
    validations = {v["step"]: v["reward_mean"] for v in _jsonl(files.grpo / "validation.jsonl")}
    rewards = f"dev prompts {validations[0]:.3f} before, {validations[last_step]:.3f} after"
    actor = files.grpo / "checkpoints" / f"global_step_{last_step}" / "actor"
    policy = run.dir / "policy"
    export_policy(config, files.model, actor, policy, {"steps": last_step, "rewards": rewards})
    run.note(
        steps=last_step,
        validation_before=validations[0],
        validation_after=validations[last_step],
        prob_diff_max=max(line["prob_diff_max"] for line in lines),
        seconds_a_step=sum(line["seconds"] for line in lines) / len(lines),
    )
    say(f"grpo: {last_step} steps, {rewards}; policy in {policy}")


def _jsonl(path: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
