"""`transformers serve` with SmolLM2, started and ended by tests and benchmarks: a real endpoint."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from psychepass.weights import BUNDLED, resolve

READY_S = 600.0


@contextmanager
def smollm2_served(log: Path) -> Iterator[tuple[str, str]]:
    """(base URL, model); what the server says goes to `log`."""
    model = str(resolve(BUNDLED))
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--host", "127.0.0.1"]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out, env=environment)
        try:
            _wait(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            server.terminate()
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def free_ports(n: int) -> list[int]:
    """Some that no system hands out by itself, so that nobody takes them in the time that a server needs to start."""
    found = []
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            found.append(port)
            if len(found) == n:
                return found
    raise AssertionError(f"no {n} free ports among 100 between 20,000 and 30,000")


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=10.0).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"transformers serve is not ready: {log.read_text()[-2000:]}")
