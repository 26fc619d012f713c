"""Strict stage configs: YAML with `extends`, then key=value overrides, validated by pydantic.

OmegaConf reads the YAML (5e-6 is a float, null is None); pydantic is strict, so a wrong type or an
unknown key is an error that names file, key, value and what is permitted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from psychepass.errors import UserError


class Config(BaseModel):
    """Base of every config section: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StageConfig(Config):
    """What every stage's YAML has: the run directory and the seed."""

    run: str
    seed: int = 0


class TrackedConfig(StageConfig):
    """A stage that trains, and whose curves W&B can show: null is off, offline writes local files."""

    wandb: Literal["offline", "online"] | None = None


C = TypeVar("C", bound=Config)

# fields into which a key of an API may have been written by mistake, or an address with a password
SECRET = re.compile(r"^((api_?)?(key|token)|key_env|base_url)$|secret|password|authorization|bearer", re.IGNORECASE)


def load(model: type[C], path: str | Path, overrides: list[str] | None = None) -> C:
    """Read `path`, apply overrides, validate.

    Raises:
        UserError: missing file, bad YAML, unknown key, wrong type, override that is not key=value.
    """
    return parse(model, read_tree(path, overrides), str(path))


def read_tree(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The merged, unvalidated mapping: the file's `extends` chain first, the overrides last."""
    merged = _read_file(Path(path))
    for text in overrides or []:
        key, sep, _ = text.partition("=")
        if not sep or not key:
            raise UserError(f"override {text!r}: expected key=value")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([text]))
        except (OmegaConfBaseException, YAMLError) as e:
            raise UserError(f"override {text!r}: {_first_line(e)}") from e
    tree = OmegaConf.to_container(merged, resolve=True)
    assert isinstance(tree, dict)
    return {str(k): v for k, v in tree.items()}


def parse(model: type[C], tree: dict[str, Any], where: str) -> C:
    """Validate a mapping; every fault is named in one sentence."""
    try:
        return model.model_validate(tree)
    except ValidationError as e:
        raise UserError(f"{where}: {describe(e, model)}") from e


def describe(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """One clause a fault: field, value found, what is permitted."""
    parts = []
    for fault in error.errors():
        field = ".".join(str(p) for p in fault["loc"]) or "the record"
        found = "a value not shown here" if SECRET.search(field.rpartition(".")[2]) else _short(fault["input"])
        if fault["type"] == "extra_forbidden":
            known = f"; permitted: {', '.join(_fields_at(model, fault['loc'][:-1]))}" if model else ""
            parts.append(f"unknown key {field!r} (value {found}){known}")
        elif fault["type"] == "missing":
            parts.append(f"missing key {field!r}")
        else:
            parts.append(f"{field}: {fault['msg']}, got {found}")
    return "; ".join(parts)


def _fields_at(model: type[BaseModel] | None, loc: tuple[Any, ...]) -> list[str]:
    for part in loc:
        info = model.model_fields.get(str(part)) if model else None
        annotation = info.annotation if info else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return sorted(model.model_fields) if model else ["(see the documentation of this section)"]


def _read_file(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: extends itself")
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    try:
        tree = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException) as e:
        raise UserError(f"{path}: not valid YAML: {_first_line(e)}") from e
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: expected a mapping at the top level")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    merged = OmegaConf.merge(_read_file(path.parent / str(parent), (*seen, path)), tree)
    assert isinstance(merged, DictConfig)
    return merged


def _first_line(e: Exception) -> str:
    return " ".join(str(e).split())[:300]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
