"""RL prompts: their dimensions, the cut, the counts, the guard on Crisis and Ethics, and the chat template."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from psychepass.errors import UserError
from psychepass.schema import Dimension, Message
from rollout_env.therapist import chat_ids
from tests.made import PLAN, identity, session
from training.prompts import dimensions_of, parquet_rows, prompts_of, require_safety, tally

SYSTEM = "You are a counselor."
BASE = session("p1", identity("base"))


def words(messages):
    return sum(len(m.content.split()) for m in messages)


def test_a_turn_is_scored_on_its_probe_and_on_empathy_and_engagement():
    assert dimensions_of(Dimension.CRISIS) == (Dimension.CRISIS, Dimension.EMPATHY, Dimension.ENGAGEMENT)
    assert dimensions_of(None) == (Dimension.EMPATHY, Dimension.ENGAGEMENT)


def test_one_prompt_a_turn_with_system_history_and_client_line():
    prompts = prompts_of([BASE], SYSTEM, words, 10_000)
    assert [p.turn for p in prompts] == list(range(1, len(PLAN) + 1))
    third = prompts[2].messages
    assert [m.role for m in third] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert third[0].content == SYSTEM and third[-1].content == BASE.turns[2].client
    assert BASE.turns[2].therapist not in str(third)
    assert prompts[2].prompt_tokens == words(third) and prompts[2].dropped_turns == 0


def test_history_is_cut_from_the_left_and_every_phase_is_kept():
    prompts = prompts_of([BASE], SYSTEM, words, 60)
    assert len(prompts) == len(PLAN)
    assert all(p.prompt_tokens <= 60 for p in prompts) and prompts[-1].dropped_turns > 0
    last = prompts[-1]
    assert last.messages[0].content == SYSTEM and last.messages[1].role == "user"
    first_kept = BASE.turns[last.dropped_turns]
    assert last.messages[1].content == first_kept.client
    longer = sum(len(t.client.split()) + len(t.therapist.split()) for t in BASE.turns[last.dropped_turns - 1 :])
    assert longer + len(SYSTEM.split()) - len(BASE.turns[-1].therapist.split()) > 60
    counts = tally(prompts)
    assert counts["empathy"] == {"1": 2, "2": 2, "3": 3, "4": 2, "5": 2}
    assert counts["crisis"]["3"] == 1 and sum(counts["crisis"].values()) == 1
    assert "diversity" not in counts


def test_dropping_loses_late_phases_and_the_guard_says_so():
    prompts = prompts_of([BASE], SYSTEM, words, 60, overlong="drop")
    assert 0 < len(prompts) < len(PLAN)
    assert [p.turn for p in prompts] == list(range(1, len(prompts) + 1))
    with pytest.raises(UserError, match="probes crisis;"):
        require_safety(prompts, 60)
    require_safety(prompts_of([BASE], SYSTEM, words, 60), 60)


def test_a_client_line_over_the_limit_is_an_error_not_a_loss():
    with pytest.raises(UserError, match="alone are 17 tokens; max_prompt_tokens is 16"):
        prompts_of([BASE], SYSTEM, words, 16)


def test_parquet_rows_have_verls_columns_and_keep_the_dimension_from_the_policy():
    row = parquet_rows(prompts_of([BASE], SYSTEM, words, 10_000))[5]
    assert set(row) == {"prompt", "data_source", "ability", "reward_model", "extra_info"}
    assert row["extra_info"]["dimensions"] == ["crisis", "empathy", "engagement"]
    assert row["extra_info"]["phase"] == 3 and row["extra_info"]["turn"] == 6 and row["extra_info"]["index"] == 5
    assert "crisis" not in str(row["prompt"])


def test_chat_ids_equal_the_chat_template_with_thinking_off(shared_dir):
    tokenizer = AutoTokenizer.from_pretrained(shared_dir / "tokenizers" / "qwen3")
    messages = prompts_of([BASE], SYSTEM, words, 10_000)[3].messages
    said = [m.model_dump() for m in messages]
    template = tokenizer.apply_chat_template(
        said, tokenize=True, add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    ids = chat_ids(tokenizer, messages)
    assert ids == template
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    thinking = tokenizer.apply_chat_template(said, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert ids != thinking


def test_chat_ids_work_with_any_template():
    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    ids = chat_ids(tokenizer, [Message(role="user", content="I feel so tired.")])
    assert tokenizer.decode(ids) == "<|im_start|>user\nI feel so tired.<|im_end|>\n<|im_start|>assistant\n"
