"""Tiny random language models for tests: a Hugging Face folder that Auto classes load in milliseconds.

    path = tiny_model(tmp_path, kind="qwen3")          # or kind="llama"
    AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)

The tokenizer is a byte-level BPE trained here on our own sentences, with ChatML tokens, so that any text
can be encoded; eos is <|im_end|>, pad is <|endoftext|>. Weights are random, fixed by `seed`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

torch.set_num_threads(1)  # tiny matrices gain nothing from threads, and lose much on a busy machine

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SENTENCES = (
    "You are a professional psychological counselor. Keep your responses concise, around 30 words.",
    "I feel so tired when I come home, and nobody asks how my day was.",
    "My sister and I have not spoken since the spring, and I miss her more than I admit.",
    "It sounds like you feel lonely in that house, even when the others are there.",
    "What would you like to be different when we finish today?",
    "That must have been frightening. We can go as slowly as you need.",
    "I keep thinking that I am a total failure at work, and I never get anything right.",
    "You told me that you finished the garden with your neighbour. How does that fit with what you just said?",
    "Thank you for telling me. Are you safe right now? Is there someone who could be with you tonight?",
    "user assistant system dimension empathy engagement skill crisis ethics memory trauma reframing",
)


@cache
def _bpe(vocab_size: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens with a ChatML-like template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe(vocab_size)),
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    folder: Path,
    kind: Literal["qwen3", "llama"] = "qwen3",
    *,
    vocab_size: int = 512,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    tie: bool = True,
    seed: int = 0,
    initializer_range: float = 0.1,
) -> Path:
    """Save a random fp32 model and its tokenizer under `folder`/tiny-<kind>-<seed>; returns that path.

    heads=9, kv_heads=3, hidden=144 gives SmolLM2's grouping. The head dimension is 16.
    """
    path = folder / f"tiny-{kind}-{seed}"
    tokenizer = tiny_tokenizer(vocab_size)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tie,
        "initializer_range": initializer_range,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**shape)) if kind == "qwen3" else LlamaForCausalLM(LlamaConfig(**shape))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
