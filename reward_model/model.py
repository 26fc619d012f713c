"""The reward model: the lower layers of a causal language model and a scalar fp32 head on chosen tokens.

A saved model is a folder: the backbone as any Hugging Face model (config.json, model.safetensors), its
tokenizer, head.safetensors, and reward_model.json, which is written last and says how texts are rendered.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from psychepass import records
from psychepass.errors import UserError
from psychepass.matmul import fast_fp32
from psychepass.memory import keep_freed
from psychepass.schema import Dimension, Frozen
from reward_model import attention
from reward_model.packing import Packed
from reward_model.train import Precision
from training.render import Renderer

CARD = "reward_model.json"
WEIGHTS, TOKENIZER = "*.safetensors", "tokenizer*.json"
HEAD_STD = 0.02


class Card(Frozen):
    """What a saved model says of itself; `model` is its id: the base's name and a hash of the weights.

    `tokenizer` is a hash of the tokenizer's files: another one would silently score other texts. `precision` is what
    it was trained in, and is scored in; weights are saved in fp32 either way. `dimensions`: those of its training
    pairs; of others it answers what it never learnt.
    """

    model: str
    base: str
    layers: int
    max_length: int
    max_response: int
    precision: Precision = "fp32"
    tokenizer: str = ""  # of a card from before there was such a hash, which no tokenizer matches
    dimensions: tuple[Dimension, ...] | None = None  # of a card from before they were noted


class RewardModel(nn.Module):
    """`backbone` is a decoder without a language-model head; `head` maps a hidden state to a raw reward."""

    backbone: PreTrainedModel

    def __init__(self, backbone: PreTrainedModel, head: nn.Linear):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.mixed = False  # in training, whoever trains decides

    def forward(self, packed: Packed) -> torch.Tensor:
        """Raw fp32 rewards [S] of one tree."""
        hidden_TH = self.hidden(packed)
        with torch.autocast(hidden_TH.device.type, enabled=False):
            return self.head(hidden_TH[packed.score_index_S].float())[:, 0]

    def hidden(self, packed: Packed) -> torch.Tensor:
        """The last hidden states [T, H] of one tree."""
        kind = packed.input_ids_T.device.type
        with torch.autocast(kind, torch.bfloat16) if self.mixed else nullcontext():
            return self._hidden(packed, kind)

    def mix(self) -> None:
        """Score as mixed precision trains: linear layers multiply in bf16, and are kept so; the rest stays fp32."""
        for module in self.backbone.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
        self.mixed = True

    def _hidden(self, packed: Packed, kind: str) -> torch.Tensor:
        config = self.backbone.config
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else self.backbone.dtype
        groups = config.num_attention_heads // config.num_key_value_heads
        return self.backbone(
            input_ids=packed.input_ids_T[None],
            position_ids=packed.position_ids_T[None],
            tree=attention.plan(packed, dtype, groups),  # for tree_attention; transformers makes no mask of its own
            use_cache=False,
        ).last_hidden_state[0]

    @property
    def layers(self) -> nn.ModuleList:
        """The backbone's decoder layers, lowest first."""
        layers = self.backbone.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        return layers

    def train_top(self, layers: int | None) -> None:
        """Leave only the top `layers` layers, the last norm and the head trainable; None trains everything."""
        if layers is None:
            return
        if layers > len(self.layers):
            raise UserError(f"train_layers = {layers}, but the backbone has {len(self.layers)} layers")
        self.backbone.requires_grad_(False)
        top = list(self.layers)[len(self.layers) - layers :]
        for part in (*top, self.backbone.get_submodule("norm")):
            part.requires_grad_(True)


def from_base(path: str | Path, layers: int | None, seed: int) -> RewardModel:
    """The first `layers` layers (None: all) of a causal language model in fp32, with a new head.

    Raises:
        UserError: more layers than the model has, or layers with a sliding window.
    """
    config = AutoConfig.from_pretrained(path)
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise UserError(f"layers = {layers}: {path} has {config.num_hidden_layers}")
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    backbone = _backbone(path, config)
    head = Head(config.hidden_size)
    nn.init.normal_(head.weight, std=HEAD_STD, generator=torch.Generator().manual_seed(seed))
    return RewardModel(backbone, head)


class Head(nn.Linear):
    """Hidden state to raw reward. A class of its own: DeepSpeed's autocast sends plain linear weights in bf16."""

    def __init__(self, hidden: int):
        super().__init__(hidden, 1, bias=False, dtype=torch.float32)


def empty(config: PretrainedConfig) -> RewardModel:
    """A model without weights, to take a whole state dict; its buffers stay empty: it is to be saved, not run."""
    with _quiet(), torch.device("meta"):
        return RewardModel(AutoModel.from_config(config, dtype=torch.float32), Head(config.hidden_size))


def gathered(parameter: torch.Tensor) -> torch.Tensor:
    """A copy of a whole parameter on the CPU, which ZeRO-3 may keep in parts; every rank must call."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().cpu().clone()
    with importlib.import_module("deepspeed").zero.GatheredParameters([parameter]):
        return parameter.detach().cpu().clone()


def _backbone(path: str | Path, config: PretrainedConfig) -> PreTrainedModel:
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        raise UserError(f"{path}: layers of types {sorted(set(config.layer_types))}; only full_attention is supported")
    for name in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if getattr(config, name, None):
            setattr(config, name, 0.0)
    with _quiet():
        return AutoModel.from_pretrained(path, config=config, dtype=torch.float32, attn_implementation=attention.NAME)


@contextmanager
def _quiet():
    """transformers shows a bar, and lists every layer that is left out on purpose; its errors still show."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def save(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    base: str,
    max_length: int,
    max_response: int,
    precision: Precision = "fp32",
    dimensions: Iterable[Dimension] | None = None,
) -> Card:
    """Write all of the model but its card; `finish` ends it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    with _quiet():
        model.backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file({"weight": model.head.weight.detach().cpu().contiguous()}, folder / "head.safetensors")
    return Card(
        model=f"{Path(base).name}-rm@{_files_hash(folder, WEIGHTS)}",
        base=base,
        layers=len(model.layers),
        max_length=max_length,
        max_response=max_response,
        precision=precision,
        tokenizer=_files_hash(folder, TOKENIZER),
        dimensions=None if dimensions is None else tuple(sorted(set(dimensions), key=list(Dimension).index)),
    )


def finish(model: RewardModel, folder: Path, card: Card) -> None:
    """Check that what can be read again, the head above all, is what was trained; then write the card."""
    again, _ = _read(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.cpu(), again.state_dict()[name]), f"{folder}: {name} changed when it was saved"
    records.write_json(folder / CARD, card.model_dump(mode="json"))


def load(folder: str | Path, device: str = "cpu") -> tuple[RewardModel, Renderer, Card]:
    """A saved model in evaluation mode, and the renderer that it was trained with; a CPU is set up for scoring.

    Rewards are those of the training's forward pass: in mixed precision where the card says so, on any device. After
    LoRA in bf16 nearly so: merged adapters are rounded with the weights that they change.

    Raises:
        UserError: no finished reward model there, or weights or a tokenizer that the card does not name.
    """
    folder = Path(folder)
    card = read_card(folder)
    if not card.model.endswith(f"@{_files_hash(folder, WEIGHTS)}"):
        raise UserError(f"{folder}: the weights are not those of {card.model}; run stage rm again")
    if card.tokenizer != _files_hash(folder, TOKENIZER):
        raise UserError(f"{folder}: the tokenizer is not the one that {card.model} was trained with")
    if device == "cpu":
        fast_fp32()
        keep_freed()
    model, tokenizer = _read(folder)
    if card.precision == "bf16":
        model.mix()
    renderer = Renderer(tokenizer, card.max_length, card.max_response)
    return model.to(device).eval(), renderer, card


def read_card(folder: Path) -> Card:
    """Raises UserError: no finished reward model there."""
    if not (folder / CARD).is_file():
        raise UserError(f"{folder}: no finished reward model here ({CARD} is missing); run stage rm first")
    return Card.model_validate(json.loads((folder / CARD).read_text()))


def _read(folder: Path) -> tuple[RewardModel, PreTrainedTokenizerBase]:
    backbone = _backbone(folder, AutoConfig.from_pretrained(folder))
    weight = load_file(folder / "head.safetensors")["weight"]
    head = Head(weight.shape[1])
    head.load_state_dict({"weight": weight})
    return RewardModel(backbone, head), AutoTokenizer.from_pretrained(folder)


def _files_hash(folder: Path, pattern: str) -> str:
    """12 hex digits of SHA-256 over the bytes of the files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]
