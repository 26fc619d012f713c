"""Where the reward model learns of the dimension: accuracy of three forms on the same test battles.

    python -m tests.benchmarks.conditioning --run runs/quickstart --json conditioning.json    # SmolLM2, three seeds
    python -m tests.benchmarks.conditioning --quick                                           # tiny: no result

  suffix            the dimension is asked after the reply (reward_model.data): what the package uses
  dimension first   it stands before the context, so that context and reply are read in its light
  12-output head    no question at all: an output for each dimension

All three are trained by the real Trainer and loss on the run's train pairs and tested on its test pairs, with one base,
seed, step, rate and number of epochs; the quickstart's rates were chosen for the suffix form, which may favour it. The
lower layers are frozen, and their states are computed once for each form (--frozen of --layers); nothing is tuned here,
and the last epoch is tested. An accuracy is the mean over seeds within the client; intervals are over clients, not over
seeds. Differences: all means that the exact sign-flip test over clients does not reject; null where so few clients
bound nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer
from transformers.trainer_utils import SaveStrategy

from psychepass import records, weights
from psychepass.config import load
from psychepass.errors import UserError
from psychepass.matmul import fast_fp32
from psychepass.schema import PreferencePair, Session
from psychepass.stats import Interval, mean_difference_interval, share_interval
from reward_model import baselines
from reward_model import model as models
from reward_model.accuracy import accuracy, longer_margin, therapist_margin
from reward_model.data import ClientStep, client_steps
from reward_model.inputs import sessions_of
from reward_model.loss import pair_loss
from reward_model.model import RewardModel
from reward_model.train import RMConfig
from reward_model.trainer import PairTrainer, training_arguments
from tests.benchmarks.figures import Figure, benchmark_parser, figure
from training.render import Renderer

ROOT = Path(__file__).resolve().parents[2]
SUFFIX, FIRST, TWELVE = "suffix", "dimension first", "12-output head"
Steps = Callable[[Sequence[PreferencePair], dict[str, Session], Renderer], list[ClientStep]]
FORMS: dict[str, Steps] = {
    SUFFIX: client_steps,
    FIRST: partial(baselines.steps, baselines.dimension_first),
    TWELVE: partial(baselines.steps, baselines.twelve_outputs),
}


class Cut(NamedTuple):
    """Steps whose token ids are rows of `states_NH`: every token's hidden state after the frozen layers."""

    steps: list[ClientStep]
    states_NH: torch.Tensor


def cut(steps: Sequence[ClientStep], lower: RewardModel) -> Cut:
    """Run the frozen layers once. Equal texts are not shared between trees."""
    states: list[torch.Tensor] = []
    hook = lower.backbone.register_forward_hook(lambda module, args, output: states.append(output.last_hidden_state[0]))
    done, cut_steps = 0, []
    with torch.no_grad():
        for step in steps:
            trees = []
            for tree in step.trees:
                lower(tree)
                trees.append(replace(tree, input_ids_T=torch.arange(done, done + tree.tokens)))
                done += tree.tokens
            cut_steps.append(replace(step, trees=tuple(trees)))
    hook.remove()
    return Cut(cut_steps, torch.cat(states))


def lower_layers(path: Path, layers: int) -> RewardModel:
    """The first layers, without the norm that ends a backbone."""
    model = models.from_base(path, layers, seed=0).eval()
    model.backbone.set_submodule("norm", nn.Identity())
    return model


def upper_layers(path: Path, layers: int, frozen: int, seed: int, twelve: bool) -> RewardModel:
    """Layers `frozen` to `layers` of the base with a new head; they read states in place of embeddings."""
    model = models.from_base(path, layers, seed)
    model.backbone.set_submodule("layers", model.layers[frozen:])
    return baselines.with_twelve_outputs(model, seed) if twelve else model


def reads(model: RewardModel, states_NH: torch.Tensor) -> None:
    model.backbone.set_input_embeddings(nn.Embedding.from_pretrained(states_NH, freeze=True))


def train(config: RMConfig, model: RewardModel, data: Cut, folder: Path) -> RewardModel:
    """All epochs of stage rm's trainer; what it logs goes with the folder."""
    reads(model, data.states_NH)
    arguments = training_arguments(config, folder, validated=False)
    arguments.save_strategy = SaveStrategy.NO
    trainer = PairTrainer(config, arguments, folder, model, data.steps, [])
    trainer.step_log.path.parent.mkdir(parents=True, exist_ok=True)
    trainer.train()
    return model.eval()


def shares(model: RewardModel, data: Cut) -> dict[str, float]:
    """client -> share of its pairs that are ranked as the judge did; an equal score counts half."""
    reads(model, data.states_NH)
    found = {}
    with torch.inference_mode():
        for step in data.steps:
            rewards_S = torch.cat([model(tree) for tree in step.trees])
            result = pair_loss(rewards_S, step.chosen_PS, step.rejected_PS, step.weight_P, 0.0)
            found[step.profile_id] = float(result.correct_P.mean())
    return found


def compare(
    pairs: Sequence[PreferencePair], sessions: dict[str, Session], path: Path, config: RMConfig, seeds: int, frozen: int
) -> list[Figure]:
    """Train and test every form with every seed."""
    assert config.layers is not None
    renderer = Renderer(AutoTokenizer.from_pretrained(path), config.max_length, config.max_response)
    train_pairs, test = ([p for p in pairs if p.split == split] for split in ("train", "test"))
    lower = lower_layers(path, frozen)
    by_form: dict[str, np.ndarray] = {}
    figures: list[Figure] = []
    for name, steps in FORMS.items():
        data, held = (cut(steps(some, sessions, renderer), lower) for some in (train_pairs, test))
        of_seed, took = [], []
        for seed in range(seeds):
            begun = time.perf_counter()
            model = upper_layers(path, config.layers, frozen, seed, name == TWELVE)
            with tempfile.TemporaryDirectory() as folder:
                model = train(config.model_copy(update={"seed": seed}), model, data, Path(folder))
            of_seed.append(shares(model, held))
            took.append(time.perf_counter() - begun)
            print(f"{name}, seed {seed}: {np.mean(list(of_seed[-1].values())):.3f}, {took[-1]:.0f} s", flush=True)
        by_form[name] = np.array([list(s.values()) for s in of_seed])
        figures += of_form(name, by_form[name])
        figures.append(figure(f"{name}/seconds to train and test", took))
        figures.append(figure(f"{name}/tokens an epoch", float(sum(s.tokens for s in data.steps))))
    return figures + differences(by_form) + rules(train_pairs, test, sessions)


def of_form(name: str, shares_EC: np.ndarray) -> list[Figure]:
    """Accuracy over all seeds E, and of each; clients C are the unit."""
    rows = {f"{name}/accuracy": shares_EC.mean(axis=0)}
    rows |= {f"{name}/accuracy, seed {e}": of_seed for e, of_seed in enumerate(shares_EC)}
    return [row(key, share_interval(of_client)) for key, of_client in rows.items()]


def differences(by_form: dict[str, np.ndarray]) -> list[Figure]:
    """Accuracy of the suffix form less another's, a client with itself."""
    means = {name: shares_EC.mean(axis=0) for name, shares_EC in by_form.items()}
    return [
        row(f"{SUFFIX} - {other}/accuracy", mean_difference_interval(means[SUFFIX] - means[other]))
        for other in (FIRST, TWELVE)
    ]


def rules(train_pairs: Sequence[PreferencePair], test: Sequence[PreferencePair], sessions: dict[str, Session]):
    """What needs no model, and the number of pairs."""
    margins = {"longer reply": longer_margin(sessions), "which therapist": therapist_margin(train_pairs, sessions)}
    found = [figure("train pairs", float(len(train_pairs))), figure("test pairs", float(len(test)))]
    for name, margin in margins.items():
        of_rule = accuracy(test, margin)
        assert of_rule is not None
        found.append(
            Figure(f"{name}/accuracy", of_rule["value"], of_rule["low"], of_rule["high"], of_rule["n_clients"])
        )
    return found


def row(name: str, interval: Interval) -> Figure:
    return Figure(name, interval.value, interval.low, interval.high, interval.n)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, quick="a tiny random model on made-up pairs, under a minute")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="its pairs and sessions are read")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6, help="the lower layers of SmolLM2 that make the backbone")
    parser.add_argument("--frozen", type=int, default=3, help="of these, from below")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    begun = time.perf_counter()
    fast_fp32()
    with tempfile.TemporaryDirectory() as temporary:
        run, path = args.run, weights.resolve("smollm2") if not args.quick else None
        changes = {"run": temporary, "epochs": args.epochs, "layers": args.layers, "two_pass": "true"}
        changes["train_layers"] = args.layers - args.frozen
        if args.quick:
            from tests.test_reward_model import write_run
            from tests.tiny import tiny_model

            run, path = write_run(Path(temporary) / "run", train=4, test=2), tiny_model(Path(temporary))
            args.frozen, changes["layers"], changes["train_layers"] = 1, 2, 1
        config = load(RMConfig, ROOT / "configs" / "quickstart" / "rm.yaml", [f"{k}={v}" for k, v in changes.items()])
        pairs = records.read(run / "pairs.jsonl", PreferencePair)
        sessions = sessions_of(pairs, run / "sessions.jsonl")
        figures = compare(pairs, sessions, Path(path), config, args.seeds, args.frozen)
    figures.append(figure("whole run/seconds", time.perf_counter() - begun))
    if args.quick:
        print("--quick: a tiny random model on made-up pairs; these numbers mean nothing")
    for f in figures:
        print(f"{f.name:<44} {f.value:9.3f} [{f.low:.3f}, {f.high:.3f}]  n = {f.n}")
    if args.json:
        flat = [f._asdict() | {end: v if math.isfinite(v := getattr(f, end)) else None for end in ("low", "high")}
                for f in figures]  # fmt: skip
        records.write_json(args.json, flat)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as e:
        sys.exit(f"conditioning: {e}")
