"""Strict stage configs: YAML with `extends`, then key=value overrides, validated by pydantic.

OmegaConf reads the YAML (5e-6 is a float, null is None); pydantic is strict, so a wrong type or an
unknown key is an error that names file, key, value and what is permitted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
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


def _no_repeat(values: list[int]) -> list[int]:
    twice = [str(v) for i, v in enumerate(values) if v in values[:i]]
    if twice:
        raise ValueError(f"{', '.join(dict.fromkeys(twice))} is there more than once; permitted: each once")
    return values


Seeds = Annotated[list[int], AfterValidator(_no_repeat)]  # of sessions: equal ones would be one session

# fields into which a key of an API may have been written by mistake, or an address with a password
SECRET = re.compile(r"^((api_?)?(key|token)|key_env|base_url)$|secret|password|authorization|bearer", re.IGNORECASE)
CREDENTIAL = re.compile(r"://[^/\s]*@|\bbearer\s|\bsk-", re.IGNORECASE)  # a value that holds one
NOT_SHOWN = "a value not shown here"


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
            OmegaConf.update(
                merged, key, OmegaConf.from_dotlist([f"value={text[len(key) + 1 :]}"])["value"], merge=True
            )
        except (OmegaConfBaseException, YAMLError, IndexError, TypeError, ValueError) as e:
            why = NOT_SHOWN if SECRET.search(key.rpartition(".")[2]) or CREDENTIAL.search(text) else _first_line(e)
            raise UserError(f"override of {key!r}: {why}; expected key=value, an entry of a list by its number") from e
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
        field = ".".join(str(p) for p in fault["loc"])
        found = NOT_SHOWN if SECRET.search(field.rpartition(".")[2]) else _short(fault["input"])
        if fault["type"] == "extra_forbidden":
            known = f"; permitted: {', '.join(_fields_at(model, fault['loc'][:-1]))}" if model else ""
            parts.append(f"unknown key {field!r} (value {found}){known}")
        elif fault["type"] == "missing":
            parts.append(f"missing key {field!r}")
        else:
            said = fault["msg"].removeprefix("Value error, ")
            whole = fault["type"] == "value_error" and isinstance(fault["input"], dict)  # the sentence says it all
            parts.append(
                said
                if whole and not field
                else f"{field or 'the record'}: {said}" + ("" if whole else f", got {found}")
            )
    return "; ".join(parts)


def _fields_at(model: type[BaseModel] | None, loc: tuple[Any, ...]) -> list[str]:
    for part in loc:
        if isinstance(part, str):  # a number is the place in a list
            info = model.model_fields.get(part) if model else None
            model = _section(info.annotation) if info else None
    return sorted(model.model_fields) if model else ["(see the documentation of this section)"]


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as list[X] or X | None."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for inner in get_args(annotation) if (found := _section(inner))), None)


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
    """A value as an error may repeat it; what is inside of a section may be a key of an API and is not shown."""
    if isinstance(value, dict):
        return f"a mapping of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        return f"a list of {len(value)}"
    text = repr(value)
    if CREDENTIAL.search(text):
        return NOT_SHOWN
    return text if len(text) <= 200 else text[:200] + "…"
