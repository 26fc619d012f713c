"""The paper's single-turn form as a verl agent loop: one prompt, one reply, its group scored in one call.

Token in, token out: the prompt is encoded once with the policy's own chat template, and the sampled ids go
to the trainer as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput

from psychepass.scoring import ScoreGroup, Scorer
from rl.prompts import context_of, dimensions_of
from rl.reward import Gather, group_scores

GROUPS = Gather()  # one a process: siblings are tasks of one event loop


class SingleTurnLoop(AgentLoopBase):
    """Samples one reply and joins its group for the reward.

    On train prompts `reward_score` is the group score of rl/reward.py; on dev prompts, which validate, the
    raw mean reward. `extra_fields` carries the raw rewards, or `error` where anything failed: the trainer
    stops there (rl/trainer.py), so that a failed score never trains.
    """

    def __init__(self, *args: Any, scorer: Mapping[str, Any], group_timeout_s: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.scorer = Scorer(**scorer)
        self.group_timeout_s = group_timeout_s
        self.codec: Any = self.tokenizer

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        messages = [dict(m) for m in row["raw_prompt"]]
        validates = row["extra_info"]["split"] == "dev"
        prompt_ids = await self.ct_build_initial_tokens(messages)
        output = AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=[self.codec.eos_token_id],
            response_mask=[0],
            response_logprobs=[0.0],
            reward_score=float("nan"),
            num_turns=2,
            metrics={},  # pyright: ignore[reportArgumentType]
            extra_fields={"turn_scores": [], "tool_rewards": []},
        )
        try:
            await self._sample(output, sampling_params)
            await self._reward(output, messages, row, validates)
        except Exception as e:
            GROUPS.fail(row["uid"], e)
            output.extra_fields["error"] = f"{type(e).__name__}: {e}"
        return output

    async def _sample(self, output: AgentLoopOutput, sampling_params: dict[str, Any]) -> None:
        reply = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=output.prompt_ids, sampling_params=sampling_params
        )
        length = self.rollout_config.response_length
        output.response_ids = list(reply.token_ids)[:length]
        output.response_mask = [1] * len(output.response_ids)
        output.response_logprobs = list(reply.log_probs)[:length] if reply.log_probs else None
        output.extra_fields |= reply.extra_fields
        output.extra_fields["truncated"] = output.response_ids[-1] != self.codec.eos_token_id

    async def _reward(
        self, output: AgentLoopOutput, messages: list[dict], row: dict[str, Any], validates: bool
    ) -> None:
        dimensions, context = dimensions_of(row["extra_info"]), context_of(messages)

        async def score(texts: list[str]) -> list[tuple[float, list[float]]]:
            ordered = sorted(texts)  # siblings join in any order, and the last digits of a reward follow it
            group = ScoreGroup(context=context, responses=tuple(ordered), dimensions=dimensions)
            rewards_RD = (await self.scorer.ascore([group]))[0]
            scores_R = [sum(r) / len(r) for r in rewards_RD] if validates else group_scores(rewards_RD)
            found = dict(zip(ordered, zip(scores_R, rewards_RD, strict=True), strict=True))
            return [found[text] for text in texts]

        text = self.codec.decode(output.response_ids, skip_special_tokens=True).strip()
        size = self.rollout_config.val_kwargs.n if validates else self.rollout_config.n
        output.reward_score, rewards_D = await GROUPS.join(row["uid"], size, text, score, self.group_timeout_s)
        raw = {d.value: r for d, r in zip(dimensions, rewards_D, strict=True)}
        output.extra_fields["raw_rewards"] = raw
        output.extra_fields["reward_extra_info"] = {"raw_reward": sum(rewards_D) / len(rewards_D)}
