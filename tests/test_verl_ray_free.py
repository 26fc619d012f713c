"""verl's real pieces without Ray: its dataset, its agent-loop worker, its advantage, and our plugin's parts."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from psychepass import config as configs
from psychepass.errors import UserError
from psychepass.scoring import Scorer
from rl import checkpoints, prompts, verl_config
from rl.config import GRPOConfig
from rl.packing import pack
from rl.reward import group_scores
from tests.conftest import ROOT
from tests.grpo_rig import Served, http_scorer, letters, write_prompts
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # verl's and its dependencies'
RESPONSES = 3
DIMENSIONS = ("empathy", "crisis")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def make_config(*overrides: str) -> GRPOConfig:
    keys = [f"responses={RESPONSES}", "lora=null", "max_response_tokens=8", "group_timeout_s=300.0", *overrides]
    return configs.load(GRPOConfig, ROOT / "configs" / "quickstart" / "grpo.yaml", keys)


def prepare(folder: Path, model: Path, scorer_url: str, *overrides: str) -> Any:
    """verl's composed config over real prompt files, as the stage makes them."""
    config = make_config(f"scorer_url={scorer_url}", *overrides)
    write_prompts(folder / "prompts.parquet", 6, 2, DIMENSIONS)
    split = prompts.split_prompts(folder / "prompts.parquet", folder, config, AutoTokenizer.from_pretrained(model))
    files = verl_config.Files(model, split["train"], split["dev"], folder)
    scorer = Scorer(scorer_url, config.scorer_timeout_s)
    OmegaConf.save(OmegaConf.create(verl_config.agent_loop_yaml(config, scorer)), folder / "agent_loop.yaml")
    return verl_config.verl_config(config, files, n_layers=2)


class FakeServer:
    """Stands for verl's LLMServerClient: says one of our sentences, a shorter one each time."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.n = tokenizer, 0

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        self.n += 1
        ids = [
            *self.tokenizer(" ".join(["you feel"] * max(1, 7 - self.n)))["input_ids"][:7],
            self.tokenizer.eos_token_id,
        ]
        return TokenOutput(token_ids=ids, log_probs=[-1.0] * len(ids), extra_fields={"global_steps": 0})


def run_worker(config: Any, split: str) -> Any:
    """verl's dataset rows through verl's AgentLoopWorker, `RESPONSES` samples a row as its trainer repeats them."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
    from verl.protocol import DataProto
    from verl.trainer.ppo.utils import create_rl_dataset
    from verl.utils.dataset.rl_dataset import collate_fn

    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    files = config.data.train_files if split == "train" else config.data.val_files
    dataset = create_rl_dataset(files, config.data, tokenizer, None)
    rows = collate_fn([dataset[i] for i in range(2)])
    rows["uid"] = np.array([str(uuid4()), str(uuid4())], dtype=object)
    batch = DataProto.from_single_dict(rows).repeat(RESPONSES if split == "train" else 1, interleave=True)
    batch.meta_info = {"validate": split == "dev", "global_steps": 1}
    worker: Any = AgentLoopWorker(config, FakeServer(tokenizer))  # pyright: ignore[reportArgumentType]
    return asyncio.run(worker.generate_sequences(batch))


@pytest.fixture
def served() -> Any:
    with http_scorer() as scorer:
        yield scorer


def test_groups_through_verls_dataset_worker_and_advantage(tmp_path: Path, model_path: Path, served: Served) -> None:
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    config = prepare(tmp_path, model_path, served.url)
    out = run_worker(config, "train")
    groups = [c["groups"][0] for c in served.calls]
    assert len(groups) == 2, "one call a group"
    assert all(g["responses"] == sorted(g["responses"]) for g in groups), "whichever came first"
    assert all(g["context"][0]["role"] == "user" for g in groups), "the scorer sees no system prompt"
    expected = {
        tuple(g["responses"]): group_scores([[letters(t, d) for d in DIMENSIONS] for t in g["responses"]])
        for g in groups
    }
    scores = out.batch["rm_scores"].sum(-1)
    assert sorted(scores.tolist()) == pytest.approx(sorted(s for v in expected.values() for s in v), abs=1e-5)
    raw = [r["empathy"] for r in out.non_tensor_batch["raw_rewards"]]
    assert sorted(raw) == pytest.approx(sorted(letters(t, "empathy") for g in groups for t in g["responses"]))

    uids = np.repeat(np.array(["first", "second"], dtype=object), RESPONSES)
    advantages, _ = get_adv_estimator_fn("grpo")(
        token_level_rewards=out.batch["rm_scores"].clone(),
        response_mask=out.batch["response_mask"],
        index=uids,
        norm_adv_by_std_in_grpo=config.algorithm.norm_adv_by_std_in_grpo,
    )
    torch.testing.assert_close(advantages[:, 0], scores, atol=1e-5, rtol=0)


def test_validation_reports_the_raw_reward(tmp_path: Path, model_path: Path, served: Served) -> None:
    out = run_worker(prepare(tmp_path, model_path, served.url), "dev")
    raw = [sum(r.values()) / len(r) for r in out.non_tensor_batch["raw_rewards"]]
    assert out.batch["rm_scores"].sum(-1).tolist() == pytest.approx(raw, abs=1e-5)


@pytest.mark.parametrize(
    ("answer", "timeout_s", "reason"),
    [
        ((500, {"error": "broken"}), 300, "status 500"),
        ((200, {"model": "letters", "rewards": [[[0.0]]]}), 300, "not 3 responses x 2 dimensions"),
        ((503, {"error": "busy"}), 1, "gave no rewards within 1 s"),
    ],
)
def test_a_failed_score_is_an_error_and_never_zero(
    tmp_path: Path, model_path: Path, served: Served, answer: Any, timeout_s: int, reason: str
) -> None:
    config = prepare(tmp_path, model_path, served.url, f"scorer_timeout_s={timeout_s}")
    served.answer = lambda _: answer
    out = run_worker(config, "train")
    assert all(reason in e for e in out.non_tensor_batch["error"])
    assert torch.isnan(out.batch["rm_scores"].sum(-1)).all()


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_packed_siblings_have_the_log_probabilities_they_have_alone(tmp_path: Path, kind: Any) -> None:
    path = tiny_model(tmp_path, kind)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(0)

    def some(n: int) -> torch.Tensor:
        return torch.randint(3, 200, (n,), generator=generator)

    a, b = some(9), some(5)
    sequences = [(a, some(4)), (b, some(1)), (a, some(6)), (a, some(2)), (b, some(3))]
    packed = pack([p for p, _ in sequences], [r for _, r in sequences])
    assert len(packed.input_ids_L) == 9 + 5 + (4 + 6 + 2 + 1 + 3) - 5, "a prompt once, last tokens never"
    logits = model(
        input_ids=packed.input_ids_L[None],
        position_ids=packed.position_ids_L[None],
        attention_mask=packed.mask_LL[None, None],
        logits_to_keep=packed.read_K,
    ).logits[0]
    together = logits.log_softmax(-1).gather(-1, packed.targets_K[:, None])[:, 0]
    alone = []
    for prompt, response in sequences:
        whole = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        alone.append(whole.log_softmax(-1).gather(-1, response[:, None])[:, 0])
    torch.testing.assert_close(together.exp(), torch.cat(alone).exp(), atol=1e-6, rtol=0)


def test_an_empty_response_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="at least one prompt token and one response token"):
        pack([torch.tensor([1])], [torch.tensor([], dtype=torch.long)])


def test_merged_lora_equals_pefts_own_merge(model_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from rl.export import merge_lora

    base: Any = AutoModelForCausalLM.from_pretrained(model_path)
    adapted: Any = get_peft_model(
        base, LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
    )
    state = {k: v.clone() for k, v in adapted.state_dict().items() if "lora_" in k}
    ours: Any = AutoModelForCausalLM.from_pretrained(model_path)
    merge_lora(ours, state, scaling=3.0)
    theirs = adapted.merge_and_unload().state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=0)


def test_loras_first_weights_follow_the_runs_seed_and_nothing_else(tmp_path: Path, model_path: Path) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    from rl.verl_cpu.engine import FSDPEngineCPU

    def lora_of(*overrides: str) -> dict[str, torch.Tensor]:
        torch.seed()  # as in a process that has drawn nobody knows what
        config = prepare(tmp_path, model_path, "http://127.0.0.1:9", "lora={rank: 4, alpha: 8}", *overrides)
        engine: Any = object.__new__(FSDPEngineCPU)
        engine.engine_config = config.actor_rollout_ref.actor.fsdp_config
        engine.model_config = omega_conf_to_dataclass(config.actor_rollout_ref.model)
        adapted = engine._build_lora_module(AutoModelForCausalLM.from_pretrained(model_path))
        return {k: v for k, v in adapted.state_dict().items() if "lora_A" in k}

    first, again, other = lora_of(), lora_of(), lora_of("seed=1")
    assert first and all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)


def test_on_cpus_a_batch_is_in_the_order_of_what_was_said_whoever_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from rl import trainer

    said = [([1, 2], [7], [-0.5]), ([1, 2], [7], [-0.25]), ([1], [9, 8], [-1.0, -2.0]), ([1, 2], [3], [-0.125])]
    names = ("prompts", "responses", "rollout_log_probs")
    stored: dict[str, Any] = {}  # stands for the transfer queue, which is a Ray actor

    def get(batch: KVBatchMeta, *fields: str) -> Any:
        rows = {f: [torch.tensor(stored[k][names.index(f)]) for k in batch.keys] for f in fields}
        return {f: torch.nested.as_nested_tensor(rows[f], layout=torch.jagged) for f in fields}

    monkeypatch.setattr(trainer, "_get", get)
    monkeypatch.setattr(PPOTrainerSync, "_balance_batch", lambda self, batch, metrics: batch)
    ours: Any = object.__new__(trainer.GRPOTrainer)

    def ordered(arrival: list[int]) -> list[Any]:
        keys = [str(uuid4()) for _ in arrival]
        stored.update({k: said[i] for k, i in zip(keys, arrival, strict=True)})
        batch = KVBatchMeta(keys=keys, tags=[{} for _ in keys], partition_id="train")
        return [stored[k] for k in ours._balance_batch(batch, {}).keys]

    ours.config = OmegaConf.create({"trainer": {"device": "cpu"}})
    assert ordered([0, 1, 2, 3]) == ordered([3, 1, 0, 2]) == ordered([1, 2, 3, 0])
    assert [prompt for prompt, _, _ in ordered([0, 2, 1, 3])] == [[1], [1, 2], [1, 2], [1, 2]], "siblings together"
    ours.config = OmegaConf.create({"trainer": {"device": "cuda"}})
    assert ordered([3, 1, 0, 2]) == [said[i] for i in (3, 1, 0, 2)], "verl's own balance on GPUs"


def test_a_step_whose_gradient_is_not_finite_is_written_and_the_run_goes_on(tmp_path: Path) -> None:
    from rl.trainer import GRPOTrainer

    keys = (
        "actor/kl_loss actor/pg_loss actor/pg_clipfrac actor/lr training/epoch response_length/mean prompt_length/mean"
    )
    data = dict.fromkeys(keys.split(), 0.5) | {"psychepass": {"reward_mean": 0.25}, "actor/grad_norm": math.inf}
    line = GRPOTrainer._line(None, data, 3)  # type: ignore[arg-type]
    checkpoints.append_line(tmp_path / "metrics.jsonl", line)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["grad_norm"] is None


def test_settling_keeps_the_last_complete_checkpoint_and_its_lines(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (tmp_path / "checkpoints" / f"global_step_{step}").mkdir(parents=True)
    for step in (2, 4):
        (tmp_path / "checkpoints" / f"global_step_{step}" / "complete").touch()
    (tmp_path / "checkpoints" / checkpoints.TRACKER).write_text("6")
    for step in range(1, 8):
        checkpoints.append_line(tmp_path / "metrics.jsonl", {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 8')
    assert checkpoints.settle(tmp_path) == 4
    assert [p.name for p in (tmp_path / "checkpoints").glob("global*")] == ["global_step_4"]
    assert (tmp_path / "checkpoints" / checkpoints.TRACKER).read_text() == "4"
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]


def test_without_a_complete_checkpoint_everything_starts_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "global_step_1").mkdir(parents=True)
    checkpoints.append_line(tmp_path / "metrics.jsonl", {"step": 1})
    checkpoints.append_line(tmp_path / "validation.jsonl", {"step": 0})
    assert checkpoints.settle(tmp_path) == 0
    assert not list((tmp_path / "checkpoints").iterdir())
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "validation.jsonl").read_text() == ""


def test_bad_prompts_are_named(tmp_path: Path, model_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    path = tmp_path / "prompts.parquet"
    write_prompts(path, 4, 1, ("empathy", "charm"))
    with pytest.raises(UserError, match=r"row 0: no scorer could answer this prompt: 'charm' is not a valid Dimension"):
        prompts.split_prompts(path, tmp_path, make_config(), tokenizer)
    write_prompts(path, 3, 1)
    with pytest.raises(UserError, match=r"row 0: prompt prompt-0 has \d+ tokens, max_prompt_tokens is 40"):
        prompts.split_prompts(path, tmp_path, make_config("max_prompt_tokens=40"), tokenizer)
    with pytest.raises(UserError, match="3 train prompts; at least 4 are needed"):
        prompts.split_prompts(path, tmp_path, make_config(), tokenizer)
