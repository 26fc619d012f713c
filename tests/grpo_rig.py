"""What the GRPO tests share: a small prompts.parquet, and a scorer that answers over HTTP in a few lines."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LINES = (
    "I feel so tired when I come home.",
    "Nobody asks how my day was.",
    "My sister and I have not spoken since the spring.",
    "I never get anything right at work.",
)


def write_prompts(
    path: Path, n_train: int, n_dev: int, dimensions: tuple[str, ...] = ("empathy", "engagement")
) -> None:
    """Prompts of one to three client lines, all different."""
    rows = []
    for index in range(n_train + n_dev):
        messages = [{"role": "system", "content": f"You are a counselor. Case {index}."}]
        for turn in range(index % 3):
            messages.append({"role": "user", "content": LINES[turn]})
            messages.append({"role": "assistant", "content": "That sounds lonely."})
        messages.append({"role": "user", "content": LINES[3]})
        rows.append(
            {
                "prompt": messages,
                "data_source": "psychepass",
                "ability": "counselling",
                "reward_model": {"style": "model", "ground_truth": ""},
                "extra_info": {
                    "index": index,
                    "split": "train" if index < n_train else "dev",
                    "session": f"s{index}",
                    "turn": 1 + index % 3,
                    "phase": 1,
                    "profile_id": f"p{index}",
                    "dimensions": list(dimensions),
                    "prompt_id": f"prompt-{index}",
                },
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)


def letters(text: str, dimension: str) -> float:
    """A reward that differs between texts and dimensions."""
    return sum(text.count(c) for c in "aeiou") / (1 + len(text)) + len(dimension) * 0.01 * text.count(" ")


class Served:
    """The scorer's address, its calls, a switch that makes it fail, what it says it was trained on, and how many calls
    it answers before the others must wait for `go_on`."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], tuple[int, Any]] | None = None
        self.dimensions: list[str] | None = None
        self.answered_at_once = math.inf
        self.go_on = threading.Event()


@contextmanager
def http_scorer(reward: Callable[[str, str], float] = letters) -> Iterator[Served]:
    """A scorer service with `reward(text, dimension)`; `served.answer` replaces its reply."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"status": "ok", "model": "letters", "dimensions": served.dimensions})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.calls.append(body)
            if len(served.calls) > served.answered_at_once:
                served.go_on.wait()
            if served.answer is not None:
                self._send(*served.answer(body))
                return
            rewards = [[[reward(t, d) for d in g["dimensions"]] for t in g["responses"]] for g in body["groups"]]
            self._send(200, {"model": "letters", "rewards": rewards})

        def _send(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
