"""Time and floating-point operations of the reward model's benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reward_model.model import RewardModel
from reward_model.packing import Packed
from tests.benchmarks.figures import Figure, figure


class Cost:
    """Analytic floating-point operations of one model.

    Linear layers: 2 * parameters * tokens. Attention: 4 * heads * head dimension a layer for each (query, key)
    that the mask allows, which is what an ideal kernel computes. Training counts three times: the backward pass
    is two forward passes. Embedding, norms, softmax and the head are left out.
    """

    def __init__(self, model: RewardModel):
        layers = list(model.layers)
        self.linear = sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2)
        config = model.backbone.config
        self.attention = 2 * len(layers) * config.num_attention_heads * config.head_dim

    def sequence(self, tokens: int) -> float:
        """A plain causal sequence, forward."""
        return 2.0 * (self.linear * tokens + self.attention * tokens * (tokens + 1) / 2)

    def trees(self, trees: Iterable[Packed]) -> float:
        """Packed trees, forward: the trunk as a plain sequence, then the branches by their mask."""
        total = 0.0
        for tree in trees:
            branch_tokens = len(tree.seen_B)
            seen = int(tree.seen_B.sum()) + int((tree.end_B - torch.arange(branch_tokens)).sum())
            total += self.sequence(tree.trunk)
            total += 2.0 * (self.linear * branch_tokens + self.attention * seen)
        return total


def sample(items: Sequence[Any], flops: Sequence[float], size: int) -> list[Any]:
    """`size` of the items, or all: the middles of equal parts by FLOPs, so that short and long ones are in it alike."""
    if len(items) <= size:
        return list(items)
    order = sorted(range(len(items)), key=flops.__getitem__)
    return [items[order[(2 * i + 1) * len(items) // (2 * size)]] for i in range(size)]


@dataclass(frozen=True)
class Job:
    """One variant: `run` does work of `flops_run` operations, out of `flops` that the whole would take.

    Where they differ, the whole's time is estimated: time * flops / flops_run, and `sample` says from what.
    """

    name: str
    run: Callable[[], object]
    flops: float
    flops_run: float
    sample: str = ""


def seconds(run: Callable[[], object], device: str) -> float:
    """CPU seconds of this process, which a busy machine disturbs less than the wall clock; on a GPU, its events."""
    if device == "cpu":
        begun = time.process_time()
        run()
        return time.process_time() - begun
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def interleave(jobs: Sequence[Job], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each job's whole work, by name, in every round; one round before them is not counted."""
    found: dict[str, list[float]] = {job.name: [] for job in jobs}
    for number in range(rounds + 1):
        for job in jobs:
            took = seconds(job.run, device) * job.flops / job.flops_run
            if number:
                found[job.name].append(took)
    return found


def compare(title: str, jobs: Sequence[Job], rounds: int, device: str, comparisons: int = 0) -> list[Figure]:
    """Time of each job, and time and FLOP ratio to the first one; ratios are taken within a round."""
    found = interleave(jobs, rounds, device)
    ours = jobs[0]
    figures = []
    for job in jobs:
        name = f"{title}/{job.name}" + (f", estimated from a sample of {job.sample}" if job.sample else "")
        took = found[job.name]
        figures.append(figure(f"{name}/seconds", took))
        if comparisons:
            figures.append(figure(f"{name}/comparisons a second", [comparisons / t for t in took]))
        if job is not ours:
            ratios = [t / t0 for t, t0 in zip(took, found[ours.name], strict=True)]
            bound = job.flops / ours.flops
            figures.append(figure(f"{name}/time ratio", ratios))
            figures.append(figure(f"{name}/FLOP ratio", bound))
            figures.append(figure(f"{name}/share of the FLOP bound", [r / bound for r in ratios]))
    return figures
