"""Configs are strict, and every fault is one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, model_validator

from psychepass.config import Config, StageConfig, load
from psychepass.errors import UserError


class Inner(Config):
    lr: float = 1e-3
    flag: bool = False


class Speaker(Config):
    name: str
    address: Inner = Inner()

    @model_validator(mode="after")
    def _check_name(self) -> Speaker:
        if self.name == "nobody":
            raise ValueError("'nobody' is no name")
        return self


class Sample(StageConfig):
    name: str
    speakers: list[Speaker] = Field(default_factory=list)
    steps: int = 3
    tags: list[str] = Field(default_factory=list)
    limit: int | None = 7
    inner: Inner = Inner()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base.yaml", "run: runs/x\nname: a\ninner: {lr: 5e-6}\n")


def test_scientific_notation_on_off_and_null(base: Path) -> None:
    config = load(Sample, base, ["inner.lr=3e-6", "inner.flag=on", "limit=null"])
    assert (config.inner.lr, config.inner.flag, config.limit) == (3e-6, True, None)
    assert load(Sample, base).inner.lr == 5e-6
    assert load(Sample, base, ["inner.flag=off"]).inner.flag is False
    assert load(Sample, base, ["name=on1", "tags=[a,b]"]).tags == ["a", "b"]


def test_a_child_extends_its_parent(base: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    child = write(tmp_path / "sub" / "c.yaml", "extends: ../base.yaml\nsteps: 9\ninner: {flag: on}\n")
    config = load(Sample, child)
    assert (config.name, config.steps, config.inner.lr, config.inner.flag) == ("a", 9, 5e-6, True)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stepz=3"], ["stepz", "3", "permitted", "steps"]),
        (["inner.lrr=3"], ["inner.lrr", "permitted", "flag, lr"]),
        (["steps=three"], ["steps", "'three'", "integer"]),
        (["steps=3.5"], ["steps", "3.5"]),
        (["steps='3'"], ["steps", "'3'"]),
        (["inner.lr=fast"], ["inner.lr", "'fast'"]),
        (["inner.flag=1"], ["inner.flag", "1", "boolean"]),
        (["name=null"], ["name", "None", "string"]),
        (["steps"], ["steps", "key=value"]),
    ],
)
def test_a_bad_value_is_named(base: Path, overrides: list[str], said: list[str]) -> None:
    with pytest.raises(UserError) as e:
        load(Sample, base, overrides)
    assert all(word in str(e.value) for word in [*said, "base.yaml" if "=" in overrides[0] else "override"])


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: no such config file"):
        load(Sample, tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match=r"bad\.yaml: not valid YAML"):
        load(Sample, write(tmp_path / "bad.yaml", "a: [1, 2\nb: 3"))
    with pytest.raises(UserError, match="missing key 'name'"):
        load(Sample, write(tmp_path / "short.yaml", "run: r\n"))
    with pytest.raises(UserError, match="extends itself"):
        load(Sample, write(tmp_path / "loop.yaml", "extends: loop.yaml\n"))
    with pytest.raises(UserError, match="a mapping"):
        load(Sample, write(tmp_path / "list.yaml", "- 1\n"))


def test_an_override_reaches_into_a_list(base: Path, tmp_path: Path) -> None:
    both = write(tmp_path / "two.yaml", "extends: base.yaml\nspeakers: [{name: a, address: {lr: 1e-6}}, {name: b}]\n")
    config = load(Sample, both, ["speakers.1.name=c", "speakers.0.address.flag=on"])
    assert [s.name for s in config.speakers] == ["a", "c"]
    assert (config.speakers[0].address.lr, config.speakers[0].address.flag) == (1e-6, True)
    assert load(Sample, both, ["speakers=[{name: d}]"]).speakers[0].name == "d"
    for wrong in ("speakers.7.name=c", "speakers.first.name=c"):
        with pytest.raises(UserError, match=r"override of 'speakers\..*an entry of a list by its number"):
            load(Sample, both, [wrong])
    with pytest.raises(UserError, match=r"unknown key 'speakers\.0\.nam' \(value 'c'\); permitted: address, name"):
        load(Sample, both, ["speakers.0.nam=c"])


def test_a_fault_of_a_whole_section_is_one_sentence(base: Path) -> None:
    with pytest.raises(UserError, match=r"base\.yaml: speakers\.0: 'nobody' is no name$"):
        load(Sample, base, ["speakers=[{name: nobody}]"])


@pytest.mark.parametrize(
    "override",
    [
        "speakers=[{name: a, api_key: SECRET}]",
        "speakers=[{name: a, headers: {Authorization: SECRET}}]",
        "speakers=[{name: a, address: 'https://user:SECRET@host'}]",
        "name=[{token: SECRET}]",
        "limit=sk-SECRET",
        "name.api_key=[SECRET",
        "speakers.9.password=SECRET",
    ],
)
def test_what_may_be_a_key_is_never_repeated(base: Path, override: str) -> None:
    with pytest.raises(UserError) as e:
        load(Sample, base, [override])
    assert "SECRET" not in str(e.value)
