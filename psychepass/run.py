"""The run directory: one manifest a stage, and the decision whether a stage still has work.

A manifest holds what made the stage's output: git commit, versions, resolved config, hashes of the
inputs, seed. A stage that is called again with another config or with changed inputs stops with an
error that names the difference; a stage that has ended does nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psychepass import records
from psychepass.config import StageConfig
from psychepass.errors import UserError

VERSIONED = ("torch", "transformers", "verl", "vllm", "deepspeed", "ray", "peft", "datasets", "accelerate", "numpy")
MOST_NAMED = 6  # differences that an error names


class StageRun:
    """One call of one stage. `done` is true when an earlier call has ended with this config and input."""

    def __init__(self, stage: str, config: StageConfig, inputs: list[Path], ignore: frozenset[str]):
        self.stage = stage
        self.dir = Path(config.run)
        self.path = self.dir / "manifests" / f"{stage}.json"
        self.seed = config.seed
        resolved = {k: v for k, v in config.model_dump(mode="json").items() if k not in ignore}
        self.manifest: dict[str, Any] = {
            "stage": stage,
            "config": resolved,
            "inputs": _hashes(inputs, self.dir),
            "seed": config.seed,
        }
        self.done = False
        if self.path.is_file():
            earlier = records.read_json(self.path)
            self._refuse_changes(earlier)
            self.done = earlier["ended"] is not None
            self.manifest = earlier

    def _refuse_changes(self, earlier: dict[str, Any]) -> None:
        anew = f"delete this file and what {self.stage} made"
        for part, hint in (("config", f"use another run directory, or {anew}"), ("inputs", anew)):
            old, new = _flat(earlier[part]), _flat(self.manifest[part])
            changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
            if changed:
                found = "; ".join(f"{k}: was {old.get(k)!r}, is {new.get(k)!r}" for k in changed[:MOST_NAMED])
                found += f"; and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
                raise UserError(f"{self.path}: stage {self.stage} ran before with other {part} ({found}); {hint}")

    def _write(self) -> None:
        records.write_json(self.path, self.manifest)

    def start(self) -> None:
        """Write the manifest of a stage that begins; on a resume, count the start."""
        if "started" not in self.manifest:
            self.manifest |= {
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "ended": None,
                "starts": 0,
                "seconds": 0.0,
                "git": git_commit(),
                "versions": versions(),
                "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
                "notes": {},
            }
        self.manifest["starts"] += 1
        self._write()

    def note(self, **facts: Any) -> None:
        """Add facts about this stage's work (counts, hashes of outputs) to its manifest."""
        self.manifest["notes"] |= facts
        self._write()

    def abandon(self) -> None:
        """Forget a first start that found a fault before it made anything, so that a mended config may follow."""
        if self.manifest["starts"] == 1:
            self.path.unlink(missing_ok=True)

    def end(self, seconds: float) -> None:
        self.manifest["ended"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.manifest["seconds"] += round(seconds, 2)
        self._write()


@contextmanager
def stage_run(
    stage: str,
    config: StageConfig,
    inputs: list[Path] | None = None,
    ignore: frozenset[str] = frozenset({"run", "wandb"}),
    rank: int = 0,
) -> Iterator[StageRun]:
    """Guard a stage's work: check the manifest, seed, time, and mark the end if nothing was raised.

    `inputs` are files that must exist; `ignore` names config keys that do not change the result.
    The body must return at once when `run.done`. `rank` is this process's among those that a launcher
    started for one stage: ranks above 0 check and seed as rank 0 does, and leave it the lock, the manifest
    and the words.
    """
    for path in inputs or []:
        if not path.is_file():
            raise UserError(f"{path}: stage {stage} needs this file; run the stage that writes it first")
    run = StageRun(stage, config, inputs or [], ignore)
    if run.done:
        if rank == 0:
            say(f"{stage}: done before, nothing to do ({run.path})")
        yield run
        return
    if rank > 0:
        seed_everything(config.seed)
        yield run
        return
    with _only_one(run):
        run.start()
        seed_everything(config.seed)
        begun = time.perf_counter()
        yield run
        run.end(time.perf_counter() - begun)
    say(f"{stage}: done in {run.manifest['seconds']:.0f} s")


@contextmanager
def _only_one(run: StageRun) -> Iterator[None]:
    """Two calls of a stage on one run directory would write over each other; the lock ends with its process."""
    lock = run.path.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            raise UserError(f"{lock}: stage {run.stage} is running here already (process {f.read().strip()})") from None
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        yield


def say(text: str) -> None:
    """A line for the person who watches; results go to files, so this is standard error."""
    print(f"[psychepass] {text}", file=sys.stderr, flush=True)


def seed_everything(seed: int) -> None:
    """Seed Python, and NumPy and torch where a stage has imported them."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 16 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def git_commit() -> str:
    """HEAD of the checkout this code runs from, `+dirty` if it has changes; empty outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "HEAD")
    return head + ("+dirty" if head and git("status", "--porcelain", "--untracked-files=no") else "")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _hashes(inputs: list[Path], base: Path) -> dict[str, str]:
    """Hashes by path within the run; a file outside it goes by its name, with as many folders as tell it apart."""
    inside = {path: str(path.relative_to(base)) for path in inputs if path.is_relative_to(base)}
    names = {name: path for path, name in inside.items()}
    for path in (p for p in dict.fromkeys(inputs) if p not in inside):
        parts = path.absolute().parts
        longer = (str(Path(*parts[-n:])) for n in range(1, len(parts) + 1))
        names[next((name for name in longer if name not in names), str(path))] = path
    return {name: file_hash(path) for name, path in names.items()}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; an entry of a list of sections by its number."""
    if isinstance(tree, list) and tree and all(isinstance(entry, dict) for entry in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{key}" if prefix else key).items()}
