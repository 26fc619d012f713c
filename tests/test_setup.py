"""launch/setup.sh, up to where it would install anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT


def setup(folder: Path) -> subprocess.CompletedProcess[str]:
    """Its copy in a checkout of its own, with a Python that it must refuse: nothing can be installed."""
    (folder / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "setup.sh", folder / "launch")
    environment = {"PATH": str(folder / "bin"), "PSYCHEPASS_PYTHON": "no-such-python", "HOME": str(folder)}
    (folder / "bin").mkdir()
    for name in ("dirname", "cat", "sha256sum", "cut", "readlink"):
        os.symlink(str(shutil.which(name)), folder / "bin" / name)
    command = ["/bin/bash", str(folder / "launch" / "setup.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_linked_environment_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / ".venv").symlink_to(other)
    done = setup(checkout)
    assert done.returncode == 2 and list(other.iterdir()) == []
    (said,) = done.stderr.splitlines()
    assert (
        said
        == f"setup: {checkout}/.venv is a symbolic link to {other}, whose packages this would change; delete the link"
    )


def test_without_a_link_it_goes_on_to_look_for_a_python(tmp_path: Path) -> None:
    done = setup(tmp_path)
    assert done.returncode == 2 and "no Python 3.11 or 3.12 found" in done.stderr and "link" not in done.stderr
