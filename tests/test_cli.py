"""The command line: instant help, exit 2 with one sentence for what the user can mend."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from psychepass.cli import STAGES, main
from psychepass.config import StageConfig, load
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def config_class(stage: str) -> type[StageConfig]:
    """The one config that a stage's module uses."""
    module = importlib.import_module(STAGES[stage][0])
    found = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, StageConfig) and c.__module__ != StageConfig.__module__
    ]
    found = [c for c in found if not any(issubclass(other, c) for other in found if other is not c)]  # no bases
    assert len(found) == 1, f"{stage}: {found}"
    return found[0]


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem in STAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_config_loads(path: Path) -> None:
    assert load(config_class(path.stem), path).run.startswith("runs/")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_ships_both_configs(stage: str) -> None:
    assert (ROOT / "configs" / f"{stage}.yaml").is_file()
    assert (ROOT / "configs" / "quickstart" / f"{stage}.yaml").is_file()


@pytest.mark.parametrize("stage", STAGES)
def test_an_unknown_key_exits_2_and_writes_nothing(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code = main([stage, f"configs/quickstart/{stage}.yaml", f"run={tmp_path / 'r'}", "no_such_key=5e-6"])
    error = capsys.readouterr().err
    assert code == 2
    assert "no_such_key" in error and "5e-06" in error and "permitted" in error and f"{stage}.yaml" in error
    assert not (tmp_path / "r").exists()


def test_help_lists_every_stage_and_is_instant() -> None:
    """It imports none of the packages that take long, whatever the machine makes of a second."""
    program = "import sys; from psychepass.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    *said, modules = done.stdout.splitlines()
    assert all(stage in "\n".join(said) for stage in STAGES)
    slow = {"torch", "transformers", "numpy", "pydantic", "openai", "httpx", "verl", "matplotlib"}
    assert "psychepass.cli" in modules.split() and not slow & set(modules.split())


@pytest.mark.parametrize(
    ("argv", "said"),
    [([], "usage"), (["fly"], "unknown stage 'fly'"), (["rm"], "usage"), (["rm", "no.yaml"], "no such config file")],
)
def test_bad_calls_exit_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out = capsys.readouterr()
    assert said in out.out + out.err
