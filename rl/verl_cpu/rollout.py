"""A rollout server for CPUs: a Ray actor that answers concurrent requests in batches.

verl's agent loop asks for one reply at a time; the server waits until no further request has come for a
moment, then samples all of them together, and reads a prompt that several ask for only once.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch
from torch import Tensor
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from psychepass.memory import give_back
from psychepass.schema import Sampling
from rollout_env.local_model import LocalModel, Reply, Request

QUIET_S = 0.05  # a batch starts when this long no request has come
MAX_BATCH = 64


def server_name(replica_rank: int) -> str:
    return f"hf_cpu_server_{replica_rank}"


def request_seed(seed: int, step: int, prompt: tuple[int, ...], sibling: int) -> int:
    """A step made again after a kill draws what it drew before, whatever arrives first."""
    name = repr((seed, step, prompt, sibling))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])


class CPUServer:
    """The actor. Weights are fp32; `load_weights` replaces those that a training step changed."""

    def __init__(self, model_path: str, max_tokens: int, seed: int):
        self.local = LocalModel.load(model_path, threads=len(os.sched_getaffinity(0)))
        # always the same thread: each one that computes gets its own OpenMP team and its own heap
        self.computing = ThreadPoolExecutor(max_workers=1)
        self.max_tokens = max_tokens
        self.seed = seed
        self.global_steps = 0
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.waiting: list[tuple[Request, asyncio.Future[TokenOutput]]] = []
        self.arrived = asyncio.Event()
        self.serving: asyncio.Task[None] | None = None

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_: Any
    ) -> TokenOutput:
        """One reply. top_p and top_k would make the log-probabilities those of another distribution than the
        trainer's, so they are refused."""
        if sampling_params.get("top_p", 1.0) != 1.0 or sampling_params.get("top_k", -1) not in (-1, 0):
            raise ValueError(f"sampling is from the full distribution: top_p 1, top_k -1; got {sampling_params}")
        sampling = Sampling(temperature=float(sampling_params["temperature"]), max_tokens=self.max_tokens)
        prompt = tuple(prompt_ids)
        self.asked[prompt] += 1
        request = Request(prompt, sampling, request_seed(self.seed, self.global_steps, prompt, self.asked[prompt]))
        if self.serving is None:
            self.serving = asyncio.create_task(self._serve())
        reply = asyncio.get_running_loop().create_future()
        self.waiting.append((request, reply))
        self.arrived.set()
        return await reply

    async def _serve(self) -> None:
        while True:
            await self.arrived.wait()
            while self.arrived.is_set() and len(self.waiting) < MAX_BATCH:
                self.arrived.clear()
                await asyncio.sleep(QUIET_S)
            self.arrived.clear()
            batch, self.waiting = self.waiting[:MAX_BATCH], self.waiting[MAX_BATCH:]
            if self.waiting:
                self.arrived.set()
            batch.sort(key=lambda item: (item[0].prompt_ids, item[0].seed))  # sums do not depend on what came first
            try:
                requests = [request for request, _ in batch]
                loop = asyncio.get_running_loop()
                replies = await loop.run_in_executor(self.computing, self.local.generate, requests, MAX_BATCH)
                for (_, waiter), reply in zip(batch, replies, strict=True):
                    waiter.set_result(self._output(reply))
            except Exception as e:
                for _, waiter in batch:
                    waiter.set_exception(e)
            give_back()

    def _output(self, reply: Reply) -> TokenOutput:
        return TokenOutput(
            token_ids=list(reply.ids),
            log_probs=list(reply.logprobs),
            stop_reason="completed",
            extra_fields={"global_steps": self.global_steps},
        )

    async def load_weights(self, weights: dict[str, Tensor], global_steps: int | None) -> None:
        """Raises ValueError on a name that the model does not have."""
        unknown = set(weights) - set(self.local.model.state_dict())
        if unknown:
            raise ValueError(f"weights the rollout model does not have: {sorted(unknown)[:5]}")
        self.local.model.load_state_dict(weights, strict=False)
        self.global_steps = global_steps or 0
        self.asked.clear()

    async def sleep(self) -> None: ...

    async def wake_up(self) -> None: ...

    async def abort_all_requests(self, reject_request: bool = False) -> None: ...

    async def resume_generation(self) -> None: ...

    async def clear_kv_cache(self) -> None: ...

    async def release_kv_cache(self) -> None: ...

    async def resume_kv_cache(self) -> None: ...

    async def start_profile(self, **_: Any) -> None: ...

    async def stop_profile(self) -> None: ...


class CPUReplica(RolloutReplica):
    """One server for all training workers: its tensor-parallel size is their number."""

    async def launch_servers(self) -> None:
        name = server_name(self.replica_rank)
        actor: Any = ray.remote(CPUServer)
        server = actor.options(name=name, num_cpus=0, max_concurrency=self.max_concurrency).remote(
            self.model_config.path, self.config.response_length, self.config.seed
        )
        self.servers = [server]
        self._server_handle, self._server_address = server, name


class CPUAdapter(BaseRollout):
    """Lives in each training worker and pushes its weights to the server; rank 0 speaks for all."""

    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(
        self,
        weights: Generator[tuple[str, Tensor], None, None],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        **_: Any,
    ) -> None:
        if wire_format != "named_tensors":
            raise ValueError(f"wire format {wire_format!r}: only named_tensors is supported")
        named = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights}
        if torch.distributed.get_rank() == 0:
            server: Any = ray.get_actor(server_name(0))
            await server.load_weights.remote(named, global_steps)
