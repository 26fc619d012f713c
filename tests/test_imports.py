"""The import table of DESIGN.md, enforced on the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAY_IMPORT = {
    "psychepass": set(),
    "rollout_env": {"psychepass"},
    "tournament": {"psychepass", "rollout_env"},
    "training": {"psychepass", "rollout_env"},
    "reward_model": {"psychepass", "training"},
    "rl": {"psychepass", "rollout_env"},
}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "<relative>"
            yield node.module or ""


def violations(package: str, source: str) -> list[str]:
    heads = {name.split(".")[0] for name in imported(ast.parse(source))}
    ours = heads & (set(MAY_IMPORT) | {"tests", "<relative>"})
    return sorted(ours - MAY_IMPORT[package] - {package})


def files() -> list[Path]:
    return [f for package in MAY_IMPORT for f in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_what_its_package_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert violations(package, path.read_text()) == []


def test_the_table_can_fail() -> None:
    assert violations("psychepass", "from rollout_env.script import build_script") == ["rollout_env"]
    assert violations("rl", "def f():\n    import reward_model.model") == ["reward_model"]
    assert violations("training", "from . import pairs") == ["<relative>"]


def test_verl_is_known_in_few_places() -> None:
    """DESIGN.md: every verl import stands in rl/ alone, its config keys in rl/verl_config.py."""
    users = {
        f.relative_to(ROOT).parts[0]
        for f in files()
        if "verl" in {n.split(".")[0] for n in imported(ast.parse(f.read_text()))}
    }
    assert users <= {"rl"}


def test_every_module_says_what_it_is_for() -> None:
    bare = [str(f.relative_to(ROOT)) for f in files() if not ast.get_docstring(ast.parse(f.read_text()))]
    assert bare == []
