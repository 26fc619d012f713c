"""One training of the reward model, from records to a saved folder: items, model, trainer, the epoch that is kept."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from psychepass import weights
from psychepass.errors import UserError
from psychepass.matmul import fast_fp32
from psychepass.run import say
from psychepass.schema import PreferencePair, Session, content_hash
from reward_model import attention, lora
from reward_model import model as models
from reward_model.data import ClientStep, Tally, client_steps, join
from reward_model.model import RewardModel
from reward_model.ranks import rank_and_world
from reward_model.train import RMConfig, write_card
from reward_model.trainer import PairTrainer, training_arguments
from training.render import Renderer


class Selection(NamedTuple):
    """The epoch that was kept; `validation` maps epochs to accuracies on clients held aside; `read`: what was read of
    the sessions of all pairs, those held aside included."""

    epoch: float
    validation: dict[str, float]
    read: Tally


def fit(
    config: RMConfig, pairs: Sequence[PreferencePair], sessions: Mapping[str, Session], folder: Path
) -> tuple[models.Card | None, Selection]:
    """Train on `pairs`, or go on from the last whole checkpoint under `folder`, and save there.

    Rank 0 does, and it alone has the card: another node may not see a file yet that was just written.
    """
    rank, world = rank_and_world()
    if world == 1 and torch.cuda.device_count() > 1:
        raise UserError(
            f"stage rm: one process, but {torch.cuda.device_count()} GPUs are visible; start it with launch/rm.sh, or "
            "show it one by CUDA_VISIBLE_DEVICES"
        )
    fast_fp32()
    clients = sorted({p.profile_id for p in pairs})
    held = held_aside(clients, config.validation_clients)
    arguments = training_arguments(config, folder, validated=bool(held))  # first: ZeRO-3 parts weights as they load
    path = weights.resolve(config.base)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = build(config, path)
    renderer = Renderer(tokenizer, config.max_length, config.max_response)
    read = Tally()
    validation = client_steps([p for p in pairs if p.profile_id in held], sessions, renderer, read)
    trained_on = [p for p in pairs if p.profile_id not in held]
    train, encode = train_items(config, trained_on, sessions, renderer, read)
    if rank == 0:
        say(f"rm: {read}")
        _say_idle_ranks(config, train, world)
    trainer = PairTrainer(config, arguments, folder, model, train, validation, encode)
    trainer.train(resume_from_checkpoint=trainer.resume_point())
    selection = _selection(trainer, read)
    whole, card = trainer.whole_model(), None
    if rank == 0:
        _refuse_broken(whole, config)
        limits = (config.max_length, config.max_response)
        dimensions = {p.dimension for p in trained_on}
        card = models.save(whole, tokenizer, folder, config.base, *limits, config.precision, dimensions)
        imported = any(s.client.kind == "imported" for s in sessions.values())
        write_card(folder, config, card, selection.epoch, len(trained_on), len(clients) - len(held), imported)
        models.finish(whole, folder, card)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return card, selection


def _say_idle_ranks(config: RMConfig, train: Sequence[Any], world: int) -> None:
    """A step's windows are dealt to the ranks, of which some have none where there are few."""
    if config.pairs_per_step is None and world > 1:
        windows = config.clients_per_step * statistics.median(len(step.trees) for step in train)
        if windows < 2 * world:
            say(
                f"rm: a step has about {windows:g} windows for {world} processes; a larger clients_per_step "
                f"({config.clients_per_step}), or fewer processes, would leave fewer of them idle"
            )


def _refuse_broken(model: RewardModel, config: RMConfig) -> None:
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise UserError(f"{broken[0]} is not finite after the last step; lower learning_rate ({config.learning_rate})")


def train_items(
    config: RMConfig,
    pairs: Sequence[PreferencePair],
    sessions: Mapping[str, Session],
    renderer: Renderer,
    read: Tally,
) -> tuple[Sequence[Any], Callable[[Sequence[Any]], ClientStep]]:
    """What an epoch shuffles, and how some of it becomes a step: clients, encoded once for all, or pairs."""
    steps = client_steps(pairs, sessions, renderer, read)  # of pairs too: all of them are checked before the first step
    if config.pairs_per_step is None:
        return steps, join
    return pairs, lambda some: join(client_steps(some, sessions, renderer))


def build(config: RMConfig, path: Path) -> RewardModel:
    """The model that is trained: what of it is frozen, adapted and recomputed is the config's choice."""
    model = models.from_base(path, config.layers, config.seed)
    model.train_top(config.train_layers)
    if config.lora:
        lora.add(model, config.lora.rank, config.lora.alpha, config.seed)
        if config.precision == "bf16" and not config.deepspeed:  # ZeRO-3 has them in parts
            lora.round_frozen(model)
    if config.gradient_checkpointing:
        attention.recompute(model.backbone, whole=config.deepspeed is not None)
    return model


def held_aside(clients: Sequence[str], count: int) -> set[str]:
    """`count` clients for validation: the first by hash of their id, whatever the order of `clients`."""
    return set(sorted(clients, key=content_hash)[:count])


def _selection(trainer: PairTrainer, read: Tally) -> Selection:
    by_step = {h["step"]: h for h in trainer.state.log_history if "eval_accuracy" in h}
    best = by_step.get(trainer.state.best_global_step or -1)
    epoch = best["epoch"] if best else trainer.state.epoch or 0.0
    return Selection(round(epoch, 6), {f"{h['epoch']:g}": h["eval_accuracy"] for h in by_step.values()}, read)
