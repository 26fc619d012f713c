"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
for name in ("NO_PROXY", "no_proxy"):  # the tests' servers are on the loopback, whatever proxy leads to the network
    os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost"]))
# the same examples in each run, however long the machine takes for one of them
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with human-rated data and the Qwen3 tokenizer; not part of the project."""
    path = Path(os.environ.get("PSYCHEPASS_SHARED", ROOT.parent / "shared"))
    if not (path / "tokenizers").is_dir():
        pytest.skip(f"{path} is absent: set PSYCHEPASS_SHARED to the folder with data/ and tokenizers/")
    return path
