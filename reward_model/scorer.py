"""Scores groups in this process: the one way to a reward, for evaluation, serving and RL alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from psychepass.schema import Dimension
from psychepass.scoring import ScoreGroup
from reward_model.joining import Rendered, joinable, pack_groups, parted
from reward_model.model import RewardModel, load
from training.render import Renderer


class GroupScorer:
    """A loaded model. Calls from several threads take turns, so a reward does not depend on the load.

    `dimensions`: those that it was trained on, null where its card does not say. It answers for others too.
    """

    def __init__(
        self,
        model: RewardModel,
        renderer: Renderer,
        name: str,
        device: str = "cpu",
        dimensions: tuple[Dimension, ...] | None = None,
    ):
        self.model = model.eval()
        self.renderer = renderer
        self.name = name
        self.dimensions = dimensions
        self.device = device
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> GroupScorer:
        model, renderer, card = load(folder, device)
        return cls(model, renderer, card.model, device, card.dimensions)

    def score(self, groups: Sequence[ScoreGroup]) -> list[list[list[float]]]:
        """Raw rewards [group][response][dimension].

        Raises:
            UserError: a response, or the client's last line alone, over the model's budget.
            FloatingPointError: a reward that is not finite.
        """
        found = {}
        for numbers, rewards in self.trees([self.render(group) for group in groups]):
            found |= dict(zip(numbers, rewards, strict=True))
        return [found[number] for number in range(len(groups))]

    def trees(self, groups: Sequence[Rendered]) -> Iterator[tuple[list[int], list[list[list[float]]]]]:
        """Scores groups tree by tree, the first one left and all that share its trunk: (their indices, rewards)."""
        left = list(range(len(groups)))
        while left:
            numbers = [left[i] for i in joinable([groups[n] for n in left], self.renderer.max_tokens)]
            yield numbers, self.score_tree([groups[n] for n in numbers])
            left = [n for n in left if n not in numbers]

    def render(self, group: ScoreGroup) -> Rendered:
        """A group's ids. Raises UserError as `score` does. Not for several threads at once: the tokenizer is not."""
        render = self.renderer
        return Rendered(
            render.context(group.context),
            tuple(render.response(r) for r in group.responses),
            tuple(render.dimension(d) for d in group.dimensions),
        )

    def score_tree(self, groups: Sequence[Rendered]) -> list[list[list[float]]]:
        """Rewards of joinable groups in one forward pass. Raises FloatingPointError as `score` does."""
        with self._lock, torch.inference_mode():
            rewards_S = self.model(pack_groups(groups).to(self.device))
        if not torch.isfinite(rewards_S).all():
            raise FloatingPointError(f"model {self.name} gave a reward that is not finite")
        return parted(rewards_S.tolist(), groups)
