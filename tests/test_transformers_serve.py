"""A real endpoint: `transformers serve` with SmolLM2 as a contestant, over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from psychepass import records
from psychepass.cli import main as cli
from psychepass.ledger import read_calls
from psychepass.schema import Session
from psychepass.weights import BUNDLED, resolve
from tests.conftest import ROOT
from tests.endpoint_rig import contestants, write_config

READY_S = 240.0


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(base URL, model) of a server that the test started."""
    model = str(resolve(BUNDLED))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--host", "127.0.0.1"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out, env=environment)
        try:
            _wait(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            server.terminate()
            server.wait(timeout=60)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2.0).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"transformers serve is not ready: {log.read_text()[-2000:]}")


def test_smollm2_behind_transformers_serve_holds_its_sessions(
    tmp_path: Path, smollm2: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    url, model = smollm2
    change = {"model": model, "unlisted": True, "max_concurrent": 2, "timeout_s": 120.0}
    therapists = [
        t | {"sampling": {"temperature": temperature, "max_tokens": 12}}
        for t, temperature in zip(contestants(url, 2, **change), (0.0, 0.9), strict=True)
    ]
    assert cli(["simulate", str(write_config(tmp_path, therapists, clients=1))]) == 0
    sessions = records.read(tmp_path / "run" / "sessions.jsonl", Session)
    calls = list(read_calls(tmp_path / "run" / "ledger_simulate.jsonl"))
    assert len(sessions) == 2 and {len(s.turns) for s in sessions} == {12}
    assert [t.therapist for t in sessions[0].turns] != [t.therapist for t in sessions[1].turns]
    assert all(t.therapist.strip() and len(t.therapist.split()) <= 12 for s in sessions for t in s.turns)
    answered = [c for c in calls if c.outcome == "ok"]
    assert len(answered) == 24 and all(c.counted and 0 < c.completion_tokens <= 12 for c in answered)
    # the server counts the prompt's tokens, and each turn of a session has more of them
    longest, shortest = (f(c.prompt_tokens for c in answered) for f in (max, min))
    assert longest > 2 * shortest > 0
    # a model that the server does not hold
    wrong = [contestants(url, 1, **change | {"model": "no-such-model"})[0]]
    capsys.readouterr()
    assert cli(["simulate", str(write_config(tmp_path / "wrong", wrong, clients=1))]) == 2
    assert "refuses the call (status 400): Server is pinned to" in capsys.readouterr().err
