"""Stage `tournament` with LLM judges over a made-up server: sessions made by hand, configs, the stage's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from psychepass import records
from psychepass.schema import Battle, Failure, Record, ScriptTurn, Session
from tests.fault_server import MODEL
from tests.handmade import Split, session_of, short_script
from tournament.llm_judge import JudgeReply

FILES: dict[str, type[Record]] = {
    "battles.jsonl": Battle,
    "failures.jsonl": Failure,
    "judge_replies.jsonl": JudgeReply,
}
DEV = ("c0", "c0-again")
WORDS = ("today", "house", "quiet", "evening", "brother", "walk", "table", "letter", "morning", "friend", "garden")


def judges(url: str, n: int = 1, **change: Any) -> list[dict[str, Any]]:
    """Entries of one endpoint that differ in name and seed."""
    endpoint = {"base_url": url, "model": MODEL, "price": {"input": 1.0, "output": 2.0}, "timeout_s": 60.0} | change
    sampling = {"temperature": 0.0, "max_tokens": 512}
    return [
        {"name": f"judge-{i}", "family": "made-up", "endpoint": endpoint, "sampling": sampling, "seed": i}
        for i in range(n)
    ]


def made_sessions(clients: int, contestants: int) -> tuple[list[Any], list[Session]]:
    """Scripts and sessions of so many train clients and one dev client; replies differ by contestant and turn."""
    scripts, sessions = [], []
    sets: list[tuple[Split, int, list[str]]] = [
        ("train", clients, [f"c{i}" for i in range(contestants)]),
        ("dev", 1, list(DEV)),
    ]
    for split, n, names in sets:
        for c in range(n):
            script = short_script(f"{split}-{c}")
            scripts.append(script)
            sessions += [session_of(script, name, split, _speaker(name)) for name in names]
    return scripts, sessions


def _speaker(name: str) -> Any:
    def speak(turn: ScriptTurn) -> str:
        number = sum(map(ord, name)) * 31 + turn.turn * 7
        return f"{name.upper()[:1]} hears you: " + " ".join(WORDS[(number * k) % len(WORDS)] for k in range(1, 8)) + "."

    return speak


def write_run(
    folder: Path, entries: list[dict[str, Any]] | None, clients: int, contestants: int, **change: Any
) -> Path:
    """A run directory after stage simulate, in `folder`/run; returns the tournament's config file."""
    scripts, sessions = made_sessions(clients, contestants)
    run = folder / "run"
    if not (run / "sessions.jsonl").exists():
        records.write(run / "scripts.jsonl", scripts)
        records.write(run / "sessions.jsonl", sessions)
    config = {"run": str(run), "base": DEV[0], "base_repeat": DEV[1], "judges": entries}
    path = folder / "tournament.yaml"
    path.write_text(yaml.safe_dump(config | change))
    return path


def read(run: Path, name: str) -> list[Any]:
    """All records of one of FILES; none where there is no file."""
    return records.read(run / name, FILES[name]) if (run / name).exists() else []
