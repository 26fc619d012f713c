"""The benchmarks of endpoints measure what they say: the same work on both sides, figures by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from psychepass.schema import ClientLine
from tests.benchmarks import client_adherence, orchestration
from tests.fault_server import FaultServer, served


def test_both_sides_ask_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orchestration, "CLIENTS", 2)
    asked = []
    for hold in (lambda url: orchestration.ours(url, 4, tmp_path), lambda url: orchestration.bare(url, 4, None)):
        server = FaultServer()
        with served(server) as url:
            assert hold(url) == len(server.log) == 4 * 12
        asked.append(server.bodies)
    ours, bare = asked
    assert Counter(len(b["messages"]) for b in ours) == Counter(len(b["messages"]) for b in bare)
    lines = [Counter(m["content"] for b in side for m in b["messages"] if m["role"] != "assistant") for side in asked]
    assert lines[0] == lines[1]
    assert {tuple(sorted(b)) for b in ours} == {tuple(sorted(b)) for b in bare}


def test_figures_by_hand() -> None:
    def took(cpu_s: float) -> dict[str, float]:
        return {"cpu_s": cpu_s, "wall_s": 2.0, "requests": 1000}

    found = {"ours": [took(3.0), took(4.0)], "bare": [took(2.0), took(4.0)], "bare, aiohttp": [took(1.0), took(1.0)]}
    rows = {r["name"]: r for r in orchestration.figures(found)}
    assert rows["ours: CPU ms a request"]["value"] == 3.5 and rows["bare: requests a second"]["value"] == 500
    ratio = rows["ours / bare: CPU a request"]
    assert (ratio["value"], ratio["low"], ratio["high"], ratio["n"]) == (1.25, 1.0, 1.5, 2)
    assert rows["ours / bare, aiohttp: CPU a request"]["value"] == 3.5


def test_adherence_by_hand() -> None:
    def draft(session: str, turn: int, attempt: int, *kinds: str) -> ClientLine:
        return ClientLine.model_validate(
            {"session_key": session, "turn": turn, "attempt": attempt, "text": "x", "violations": kinds}
        )

    lines = [draft("a", 1, 0, "off trigger"), draft("a", 1, 1), draft("a", 2, 0)]
    lines += [draft("b", 1, 0, "off trigger", "too long"), draft("b", 1, 1, "too long"), draft("b", 2, 0)]
    rows = {r["name"].removeprefix("LLM client, "): r for r in client_adherence.figures(lines)}
    assert rows["first draft: off trigger"]["value"] == 0.5 and rows["line that stands: off trigger"]["value"] == 0
    assert rows["first draft: too long"]["value"] == 0.25 == rows["line that stands: any violation"]["value"]
    assert all(r["n"] == 2 and r["low"] <= r["value"] <= r["high"] for r in rows.values())
