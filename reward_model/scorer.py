"""Scores groups in this process: the one way to a reward, for evaluation, serving and RL alike."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from psychepass.scoring import ScoreGroup
from reward_model.model import RewardModel, load
from reward_model.packing import pack_group
from training.render import Renderer


class GroupScorer:
    """A loaded model. Calls from several threads take turns, so a reward does not depend on the load."""

    def __init__(self, model: RewardModel, renderer: Renderer, name: str, device: str = "cpu"):
        self.model = model.eval()
        self.renderer = renderer
        self.name = name
        self.device = device
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> GroupScorer:
        model, renderer, card = load(folder, device)
        return cls(model, renderer, card.model, device)

    def score(self, groups: Sequence[ScoreGroup]) -> list[list[list[float]]]:
        """Raw rewards [group][response][dimension].

        Raises:
            UserError: a response, or the client's last line alone, over the model's budget.
            FloatingPointError: a reward that is not finite.
        """
        return [self._score(group) for group in groups]

    def _score(self, group: ScoreGroup) -> list[list[float]]:
        render = self.renderer
        packed = pack_group(
            render.context(group.context),
            [render.response(r) for r in group.responses],
            [render.dimension(d) for d in group.dimensions],
        )
        with self._lock, torch.inference_mode():
            rewards_S = self.model(packed.to(self.device))
        if not torch.isfinite(rewards_S).all():
            raise FloatingPointError(f"model {self.name} gave a reward that is not finite")
        return rewards_S.reshape(len(group.responses), len(group.dimensions)).tolist()
