"""The reward model's cost: packed sessions against other forms, on the same battles and weights, in one run.

    python -m tests.benchmarks.reward_model --device cpu --quick --json figures.json     # under a minute of one core
    python -m tests.benchmarks.reward_model --device cuda --shape qwen3-8b --json figures.json

Variants take turns in every round; a figure is the median over rounds with its 10 % and 90 % quantiles. Times are
CPU seconds of one thread (a busy machine disturbs them too, though less than the wall clock), on a GPU
those of CUDA events. Work is a forward and a backward pass; rendering, packing and the optimiser are left out.
Ours and the 12-output head run whole steps with the pair loss. Where the graph of all sessions would not fit, their
layers are computed again in the backward pass, attention excepted; at Qwen3-8B's shape all forms' layers are, and
ours run in two passes. The other forms are charged one forward and one backward pass a tree, without a loss, which
favours them. What would take too long is timed on a sample and scaled by FLOPs; its figures' names then say so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from transformers import AutoModel, Qwen3Config

from psychepass.matmul import fast_fp32
from psychepass.memory import keep_freed
from reward_model import attention, baselines
from reward_model.data import ClientStep, client_steps
from reward_model.loss import pair_loss
from reward_model.model import RewardModel
from reward_model.packing import Packed
from tests.benchmarks import trl_trainer, workloads
from tests.benchmarks.figures import Figure, benchmark_parser, figure
from tests.benchmarks.measure import Cost, Job, compare, interleave, sample

# layers, hidden, intermediate, heads, key heads, head dimension
SHAPES = {
    "tiny": (2, 128, 384, 4, 2, 32),
    "small": (6, 256, 768, 4, 2, 64),
    "qwen3-8b": (36, 4096, 12288, 32, 8, 128),
}
CENTERING = 0.01
PARTS = ("score", "train", "client")
TRAINING_GRID = ((2, 1), (2, 4), (2, 12), (8, 1), (8, 12))
SCORING_GRID = ((8, 12), (8, 1))
FORMS = {
    "one-level prefix sharing": baselines.one_level,
    "dimension first": baselines.dimension_first,
    "naive, deduplicated": baselines.naive_once,
    "naive": baselines.naive,
}


@dataclass(frozen=True)
class Scale:
    """Tokens of the longest session, and of a group's context and replies; trees that a sample has.

    `recompute` and `two_pass` say how a client's whole steps save memory.
    `fast_fp32`: as the stages do on a CPU. At the quick model's width it gains nothing, and it prepares a kernel
    for each new length, which a few rounds of short ragged sequences would mostly measure.
    """

    shape: str
    longest: int
    context: int
    reply: int
    rounds: int
    sample: int
    recompute: bool
    fast_fp32: bool
    two_pass: bool = False
    training: Sequence[tuple[int, int]] = TRAINING_GRID
    scoring: Sequence[tuple[int, int]] = SCORING_GRID


QUICK = Scale("tiny", longest=1300, context=512, reply=64, rounds=3, sample=4, recompute=False, fast_fp32=False)
FULL = Scale("small", longest=9152, context=1024, reply=128, rounds=5, sample=8, recompute=True, fast_fp32=True)


def build(shape: str, device: str) -> RewardModel:
    """A random Qwen3 of that shape in fp32 on our attention; a small vocabulary, which costs no FLOPs."""
    layers, hidden, intermediate, heads, key_heads, head_dim = SHAPES[shape]
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        max_position_embeddings=40960,
    )
    torch.manual_seed(0)
    with torch.device(device):
        backbone = AutoModel.from_config(config, attn_implementation=attention.NAME, dtype=torch.float32)
        head = nn.Linear(hidden, 1, bias=False)
    return RewardModel(backbone, head)


# --- the work ----------------------------------------------------------------------------------


def train_step(model: RewardModel, step: ClientStep, two_pass: bool, recompute: bool) -> None:
    """Gradients of a whole step, as reward_model.trainer makes them."""
    device = model.head.weight.device
    matrices = [t.to(device) for t in (step.chosen_PS, step.rejected_PS, step.weight_P)]
    before = model.training
    model.train(before or recompute)  # layers are computed again in this mode alone
    with torch.set_grad_enabled(not two_pass):
        rewards_S = torch.cat([model(tree) for tree in step.trees])
    if not two_pass:
        pair_loss(rewards_S, *matrices, CENTERING).loss.backward()
    else:
        rewards_S.requires_grad_()
        (slopes_S,) = torch.autograd.grad(pair_loss(rewards_S, *matrices, CENTERING).loss, rewards_S)
        for tree, slopes in zip(step.trees, slopes_S.split([len(t.score_index_S) for t in step.trees]), strict=True):
            (slopes * model(tree)).sum().backward()
    model.zero_grad()
    model.train(before)


def train_trees(model: RewardModel, trees: Sequence[Packed]) -> None:
    """One forward and one backward pass a tree: what a form costs at the least."""
    for tree in trees:
        model(tree).sum().backward()
    model.zero_grad()


def score(model: RewardModel, trees: Sequence[Packed]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(tree) for tree in trees])


def on(device: str, step: ClientStep) -> ClientStep:
    return replace(step, trees=tuple(t.to(device) for t in step.trees))


def whole(name: str, model: RewardModel, step: ClientStep, two_pass: bool = False, recompute: bool = False) -> Job:
    step = on(str(model.head.weight.device), step)
    flops = 3 * Cost(model).trees(step.trees)  # what is computed a second time counts in the time, not here
    return Job(name, partial(train_step, model, step, two_pass, recompute), flops, flops)


def sampled(name: str, model: RewardModel, trees: Sequence[Packed], size: int, run=train_trees) -> Job:
    """All trees, or a sample of `size`."""
    cost, passes = Cost(model), 3 if run is train_trees else 1
    few = sample(trees, [cost.trees([t]) for t in trees], size)
    work = [tree.to(model.head.weight.device) for tree in few]
    note = f"{size} trees" if len(few) < len(trees) else ""
    return Job(name, partial(run, model, work), passes * cost.trees(trees), passes * cost.trees(few), note)


# --- the workloads -----------------------------------------------------------------------------


def tournament(model: RewardModel, scale: Scale, device: str, retention: float) -> list[Figure]:
    """A client's step at that share of verdicts that became pairs."""
    title = f"client of 12 sessions, {retention:.0%} of verdicts"
    render = workloads.renderer(scale.longest)
    sessions = workloads.client(render, scale.longest)
    pairs = workloads.swiss_pairs(sessions, retention)
    (own,) = client_steps(pairs, sessions, render)
    twelve = baselines.with_twelve_outputs(model, seed=0)
    outputs = baselines.twelve_outputs(pairs, sessions, render)
    jobs = [
        whole("ours", model, own, scale.two_pass, scale.recompute),
        whole("12-output head", twelve, outputs, scale.two_pass, scale.recompute),
    ]
    jobs += [sampled(n, model, form(pairs, sessions, render).trees, scale.sample) for n, form in FORMS.items()]
    if trl_trainer.INSTALLED:
        jobs.append(trl_trainer.job(model, pairs, sessions, scale.longest, scale.sample, model.training))
    sizes = {"pairs": len(pairs), "sessions": len(sessions), "tokens packed": own.tokens}
    facts = [figure(f"{title}/{k}", v) for k, v in sizes.items()]
    return facts + compare(title, jobs, scale.rounds, device, comparisons=len(pairs))


def twice_the_battles(model: RewardModel, scale: Scale, device: str) -> list[Figure]:
    """A second tournament among the same sessions: the share that it adds to a step's time."""
    render = workloads.renderer(scale.longest)
    sessions = workloads.client(render, scale.longest)
    jobs = []
    for tournaments in (1, 2):
        (step,) = client_steps(workloads.swiss_pairs(sessions, 1.0, tournaments), sessions, render)
        jobs.append(whole(str(tournaments), model, step, scale.two_pass, scale.recompute))
    found = interleave(jobs, scale.rounds, device)
    added = [b / a - 1 for a, b in zip(found["1"], found["2"], strict=True)]
    return [figure("twice the battles of the same sessions/share added to a step", added)]


def training_grid(model: RewardModel, scale: Scale, device: str) -> list[Figure]:
    figures = []
    for replies, dimensions in scale.training:
        group = workloads.group(replies, dimensions, scale.context, scale.reply)
        jobs = [
            whole("ours", model, group.step(group.ours())),
            sampled("one-level prefix sharing", model, group.one_level(), scale.sample),
            sampled("naive", model, group.naive(), scale.sample),
        ]
        figures += compare(f"train {replies} replies x {dimensions}", jobs, scale.rounds, device)
    return figures


def scoring_grid(model: RewardModel, scale: Scale, device: str) -> list[Figure]:
    figures = []
    for replies, dimensions in scale.scoring:
        group = workloads.group(replies, dimensions, scale.context, scale.reply)
        jobs = [
            sampled("ours", model, group.ours(), scale.sample, run=score),
            sampled("one-level prefix sharing", model, group.one_level(), scale.sample, run=score),
            sampled("naive", model, group.naive(), scale.sample, run=score),
        ]
        figures += compare(f"score {replies} replies x {dimensions}", jobs, scale.rounds, device)
    return figures


def errors(model: RewardModel, scale: Scale, dtype: torch.dtype | None) -> list[Figure]:
    """Distances of a group's rewards from the naive fp32 ones; with a dtype, the backbone is left in it."""
    device = model.head.weight.device
    group = workloads.group(8, 2, scale.context, scale.reply)
    ours, naive = ([t.to(device) for t in trees] for trees in (group.ours(), group.naive()))
    want = score(model, naive)
    spread = figure("rewards/standard deviation, fp32", float(want.std()))
    found = [spread, figure("rewards/error, fp32 ours", (score(model, ours) - want).abs().tolist())]
    if dtype:
        model.backbone.to(dtype)
        for name, trees in (("ours", ours), ("naive", naive)):
            found.append(figure(f"rewards/error, {dtype} {name}", (score(model, trees) - want).abs().tolist()))
    return found


def measure(scale: Scale, device: str, dtype: torch.dtype | None, parts: Sequence[str] = PARTS) -> list[Figure]:
    model = build(scale.shape, device).eval()
    figures = errors(model, scale, dtype)
    if "train" in parts:
        figures += training_grid(model, scale, device)
    attention.recompute(model.backbone)  # acts in training mode alone
    if scale.shape == "qwen3-8b":  # a window's graph would not fit; every form pays the same
        model.train()
    if "client" in parts:
        for retention in (1.0, 0.32):
            figures += tournament(model, scale, device, retention)
        figures += twice_the_battles(model, scale, device)
    if "score" in parts:  # after training, whose stage leaves freed heap as it is
        if device == "cpu":
            keep_freed()  # as reward_model.model.load does
        figures += scoring_grid(model.eval(), scale, device)
    return figures


def main(argv: Sequence[str] | None = None, quick: Scale = QUICK) -> int:
    parser = benchmark_parser(__doc__, quick="a smaller model, shorter texts, fewer rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="another model than the scale's own")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS, help="these workloads alone")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is visible here")
    scale = quick if args.quick else FULL
    scale = replace(scale, shape=args.shape or scale.shape, two_pass=args.shape == "qwen3-8b")
    torch.set_num_threads(1)
    fast = scale.fast_fp32 and fast_fp32()
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, 1 thread, fast fp32 {fast}"
    passes = ("two passes" if scale.two_pass else "one pass") + ", layers recomputed" * scale.recompute
    print(f"{where}; torch {torch.__version__}; {scale.shape} {SHAPES[scale.shape]}, {passes}", flush=True)
    if not trl_trainer.INSTALLED:
        print("trl is not installed: skipped", flush=True)
    figures = measure(scale, args.device, torch.bfloat16 if args.device == "cuda" else None, args.part)
    for f in figures:
        print(f"{f.value:12.4g}  [{f.low:.4g}, {f.high:.4g}] n={f.n}  {f.name}")
    if args.json:
        args.json.write_text(json.dumps([f._asdict() for f in figures], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
