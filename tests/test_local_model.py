"""The batched engine against transformers itself, without a cache."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, Phi3Config

from psychepass import matmul
from psychepass.errors import UserError
from psychepass.schema import Sampling
from rollout_env.kv_cache import check_supported, grouped_sdpa
from rollout_env.local_model import LocalModel, Request, _Draw, _draw
from tests.tiny import tiny_model

GREEDY = Sampling(temperature=0, max_tokens=20)
SMOLLM2 = {"hidden": 144, "heads": 9, "kv_heads": 3}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def pair(request, tmp_path_factory):
    """The engine and the plain model on the same weights."""
    kind = request.param
    path = tiny_model(tmp_path_factory.mktemp(kind), kind, **(SMOLLM2 if kind == "llama" else {}))
    return LocalModel.load(path), AutoModelForCausalLM.from_pretrained(path)


def random_ids(n: int, seed: int) -> list[int]:
    return torch.randint(3, 400, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(model, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def plain_logprobs(model, prompt: list[int], reply: tuple[int, ...], temperature: float = 1.0) -> list[float]:
    """Log-probability of each reply token by one forward pass without a cache."""
    logits = model(torch.tensor([[*prompt, *reply]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(reply)[:, None])[:, 0].tolist()


def test_turns_of_ragged_rows_equal_the_plain_model(pair):
    """Three turns; rows end early, sit out a turn, and one history is rewritten in the middle."""
    engine, plain = pair
    prompts = [random_ids(n, seed=n) for n in (5, 17, 9, 30, 12, 140)]
    chat = engine.open(len(prompts))
    for turn, rows in enumerate(([0, 1, 2, 3, 4, 5], [4, 1, 3], [0, 1, 2, 3, 4, 5])):
        replies = chat.reply({r: Request(prompts[r], GREEDY, seed=r) for r in rows})
        for r in rows:
            assert list(replies[r].ids) == greedy(plain, prompts[r])
            assert replies[r].logprobs == pytest.approx(plain_logprobs(plain, prompts[r], replies[r].ids), abs=1e-4)
            prompts[r] = [*prompts[r], *replies[r].ids, *random_ids(3 + 5 * r, seed=10 * turn + r)]
        if turn == 1:
            prompts[2][4] += 1


def test_the_cache_computes_only_what_is_new(pair):
    engine, _ = pair
    chat, prompt = engine.open(1), random_ids(40, seed=1)
    reply = chat.reply({0: Request(prompt, Sampling(max_tokens=6), seed=0)})[0]
    # the last drawn token is not fed, because nothing was asked after it
    assert chat.encoded_tokens == 40 + len(reply.ids) - 1
    before = chat.encoded_tokens
    chat.reply({0: Request([*prompt, *reply.ids, 7, 8, 9], Sampling(max_tokens=1), seed=0)})
    assert chat.encoded_tokens == before + 4


def test_a_chat_that_is_dropped_frees_its_cache_at_once(pair):
    """Keys and values are gigabytes: they must not wait for the cycle collector."""
    engine, _ = pair
    chat = engine.open(2)
    chat.reply({0: Request(random_ids(5, seed=1), GREEDY, seed=0)})
    keys = weakref.ref(chat.cache.slot_layers[0].keys)
    assert keys() is not None
    gc.disable()
    try:
        del chat
        assert keys() is None
    finally:
        gc.enable()


def test_replies_of_shared_prompts_come_back_in_order(pair):
    engine, plain = pair
    prompts = [random_ids(n, seed=n) for n in (8, 25, 14)]
    requests = [
        Request(prompts[i % 3], Sampling(temperature=t, max_tokens=12), seed=i) for i, t in enumerate([0.7, 1.3, 0] * 4)
    ]
    replies = engine.generate(requests, max_rows=5)
    for request, reply in zip(requests, replies, strict=True):
        want = plain_logprobs(plain, list(request.prompt_ids), reply.ids, request.sampling.temperature or 1.0)
        assert reply.logprobs == pytest.approx(want, abs=1e-4)
        assert reply.logprob_mean == pytest.approx(sum(want) / len(want), abs=1e-4)
    assert replies[2].ids == replies[5].ids == replies[8].ids  # greedy
    assert len({replies[i].ids for i in (0, 3, 6, 9)}) == 4


def test_a_draw_depends_on_its_seed_and_not_on_the_batch(pair):
    engine, _ = pair
    prompts = [random_ids(n, seed=n) for n in (9, 21, 33)]
    requests = [Request(p, Sampling(max_tokens=10), seed=5) for p in prompts]
    together = engine.generate(requests)
    alone = [engine.generate([r])[0] for r in requests]
    assert [r.ids for r in together] == [r.ids for r in alone]
    other = engine.generate([Request(prompts[0], Sampling(max_tokens=10), seed=6)])
    assert other[0].ids != alone[0].ids


def test_an_end_token_ends_the_reply_and_the_text_hides_it(pair, monkeypatch):
    engine, _ = pair
    end = engine.tokenizer.eos_token_id
    assert engine.end_ids == {end}
    ends = frozenset({end, *range(100, 160)})  # random weights draw one of these about every eighth token
    monkeypatch.setattr(engine, "end_ids", ends)
    replies = engine.generate([Request(random_ids(6, seed=i), Sampling(max_tokens=12), seed=i) for i in range(16)])
    assert {r.finished for r in replies} == {True, False}
    for reply in replies:
        assert reply.finished == (reply.ids[-1] in ends)
        assert not ends & set(reply.ids[:-1])
        assert reply.finished or len(reply.ids) == 12
    draw = _Draw(Request([1], GREEDY, seed=0))
    draw.add(50, -1.0, ends)
    draw.add(end, -1.0, ends)
    assert draw.reply(engine.tokenizer).text == engine.tokenizer.decode([50])


def test_draws_follow_the_distribution_and_top_p_cuts_its_tail():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None].expand(4000, 4)
    for top_p, want in ((1.0, [0.5, 0.3, 0.15, 0.05]), (0.75, [0.625, 0.375, 0, 0]), (0.2, [1.0, 0, 0, 0])):
        draws = [_Draw(Request([1], Sampling(top_p=top_p, max_tokens=1), seed=s)) for s in range(4000)]
        tokens, logprobs = _draw(logits, draws)
        shares = torch.bincount(torch.tensor(tokens), minlength=4) / 4000
        assert shares.tolist() == pytest.approx(want, abs=0.03)
        assert logprobs[0] == pytest.approx(math.log([0.5, 0.3, 0.15, 0.05][tokens[0]]), abs=1e-5)


def test_the_last_number_below_one_finds_a_possible_token():
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    draw = _Draw(Request([1], Sampling(max_tokens=1), seed=0))
    draw.uniform = [1 - 2**-53]
    assert _draw(logits, [draw])[0] == [1]


def test_what_cannot_be_answered_is_refused(pair, tmp_path):
    engine, _ = pair
    with pytest.raises(UserError, match="4090 tokens and a reply of up to 20 exceed the model's context of 4096"):
        engine.open(1).reply({0: Request(random_ids(4090, seed=0), GREEDY, seed=0)})
    with pytest.raises(ValueError, match="boolean mask"):
        q = torch.zeros(1, 4, 1, 16)
        grouped_sdpa(torch.nn.Identity(), q, q, q, None)
    path = tiny_model(tmp_path, "qwen3")
    model = AutoModelForCausalLM.from_pretrained(path)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match="sliding_attention; only full_attention"):
        LocalModel(model, AutoTokenizer.from_pretrained(path))
    for config in (MistralConfig(), Phi3Config(sliding_window=2047)):
        with pytest.raises(UserError, match=r"sliding_attention \([24],0(96|47) tokens\); only full_attention"):
            check_supported(config)
    check_supported(MistralConfig(sliding_window=None))


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (None, "its tokenizer writes no system prompt: "),
        ("{{ raise_exception('System role not supported') }}", "writes no system prompt: System role not supported"),
        ("{{ messages[1]['content'] }}<think>\n", "its chat template opens a thought before the reply"),
    ],
)
def test_a_chat_template_that_cannot_ask_is_refused_before_anything_is_asked(tmp_path, template, fault):
    path = tiny_model(tmp_path, "qwen3")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = template
    (path / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(path)
    with pytest.raises(UserError, match=fault):
        LocalModel.load(path)


def test_where_a_gpu_is_visible_precisions_stay_as_pytorch_can_tell_them(monkeypatch):
    """FlexAttention asks for them when it is compiled there; the faster product would make that an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with matmul.default_fp32():
        before = matmul._settings().fp32_precision
        assert not matmul.fast_fp32.__wrapped__() and matmul._settings().fp32_precision == before


def test_the_faster_product_is_only_used_where_it_is_exact():
    if matmul.fast_fp32():
        assert matmul._settings().fp32_precision == "bf16"
        assert matmul._worst_relative_error() < matmul.TOLERANCE
        with matmul.default_fp32():
            assert matmul._settings().fp32_precision == "ieee"
        assert matmul._settings().fp32_precision == "bf16"
    x = torch.randn(64, 576)
    rounded = (x.bfloat16().double() @ x.bfloat16().double().T - x.double() @ x.double().T).norm()
    assert rounded / (x.double() @ x.double().T).norm() > 100 * matmul.TOLERANCE  # the probe would see bf16
