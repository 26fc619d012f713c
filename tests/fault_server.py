"""An OpenAI-compatible server that fails on purpose, by a hash of the messages it is sent.

    with served(FaultServer(FAULTS)) as url: ...                      # in a thread of this process
    python -m tests.fault_server --port-file port --faults --delay-s 0.2     # in a process of its own

What a request gets depends on its messages alone: the fault their hash falls on, as many times as the fault says,
and after that the reply. The reply depends on messages, seed and sampling; to a judge's prompt it is a judgement as
JSON. GET /v1/models lists the model; GET /stats
tells what was served. The server counts; whoever uses it compares the counts with what was written.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvicorn

MODEL = "made-up-1"
ALWAYS = 10**9
CLIENT_TEMPERATURE = 0.25  # of the clients that models play: their prompt is new in every turn, each call stands alone
WORDS = ("it", "sounds", "as", "if", "you", "feel", "worn", "out", "and", "alone", "what", "would", "help", "today")


class Fault(NamedTuple):
    """`share` of all messages get `kind` the first `times` times they are sent."""

    kind: str
    share: float
    times: int = 1


FAULTS = (
    Fault("429", 0.05, 2),
    Fault("500", 0.05, 2),
    Fault("hang", 0.01),
    Fault("cut-off JSON", 0.03),
    Fault("cut-off transfer", 0.02),
    Fault("error body", 0.03),
    Fault("empty", 0.03),
    Fault("wrong role", 0.02),
    Fault("empty", 0.002, ALWAYS),
    Fault("wrong role", 0.002, ALWAYS),
    Fault("thoughts only", 0.002, ALWAYS),
)
# of judges: a reply cut off in its middle holds no judgement
JUDGE_FAULTS = (*FAULTS, Fault("cut-off text", 0.04), Fault("cut-off text", 0.04, ALWAYS), Fault("empty", 0.04, ALWAYS))
JUDGE_PROMPT = "=== Therapist A, stage 1 of 5"
JUDGED = (
    *("empathy", "discernment", "engagement", "skill", "suggestion", "reframing", "progression", "trauma", "crisis"),
    *("ethics", "memory", "overall"),
)


class Served(NamedTuple):
    """One request: the hash of its messages; its conversation, which its first two messages and the temperature tell;
    what it got; when it began and when its answer was sent (None while it is not)."""

    key: str
    conversation: str
    kind: str
    begun_s: float
    sent_s: float | None


class FaultServer:
    """The ASGI application. `delay_s` before each answer; a hang lasts `hang_s`; a prompt of more than
    `context_words` words is refused as too long; `key`, if given, must be the bearer's; `say` makes the reply."""

    def __init__(
        self,
        faults: tuple[Fault, ...] = (),
        delay_s: float = 0.0,
        hang_s: float = 5.0,
        context_words: int | None = None,
        key: str | None = None,
        model: str = MODEL,
        say: Callable[[dict[str, Any]], str] | None = None,
    ):
        self.faults, self.delay_s, self.hang_s = faults, delay_s, hang_s
        self.context_words, self.key, self.model = context_words, key, model
        self.say = say or reply  # the text of a reply, fixed by the request's body
        self.down = False  # every connection is cut before an answer
        self.hold_from: int | None = None  # requests from this number on get no answer while it is set
        self.log: list[Served] = []
        self.bodies: list[dict[str, Any]] = []
        self.seen: Counter[str] = Counter()
        self.open = self.most_open = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            return await send({"type": "lifespan.shutdown.complete"})
        data = b""
        while True:
            message = await receive()
            data += message.get("body", b"")
            if not message.get("more_body"):
                break
        if self.down:
            return await _send(send, 200, {}, whole=False)
        path = scope["path"]
        if path == "/stats":
            return await _send(send, 200, {"log": self.log, "open": self.open, "most_open": self.most_open})
        bearer = dict(scope["headers"]).get(b"authorization", b"").decode()
        if self.key and bearer != f"Bearer {self.key}":
            return await _send(send, 401, {"error": {"message": f"wrong key: {bearer}", "code": "invalid_api_key"}})
        if path == "/v1/models":
            return await _send(send, 200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})
        if path != "/v1/chat/completions":
            return await _send(send, 404, {"error": {"message": f"no such path {path}"}})
        await self._complete(json.loads(data), send)

    async def _complete(self, body: dict[str, Any], send: Any) -> None:
        messages = body["messages"]
        key, begun_s, number = digest(messages), time.monotonic(), len(self.log)
        kind = self._kind(body, key)
        self.seen[key] += 1
        self.bodies.append(body)
        conversation = digest([messages[:2], body.get("temperature")])
        if body.get("temperature") == CLIENT_TEMPERATURE:
            conversation = f"client {number}"
        self.log.append(Served(key, conversation, kind, begun_s, None))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s * (0.5 + int(key[:4], 16) / 0xFFFF))
            if kind == "hang":
                await asyncio.sleep(self.hang_s)
            while self.hold_from is not None and number >= self.hold_from:
                await asyncio.sleep(0.01)
            status, answer, headers = self._answer(kind, body)
            await _send(send, status, answer, headers, whole=kind != "cut-off transfer")
        finally:
            self.open -= 1
        self.log[number] = self.log[number]._replace(sent_s=time.monotonic())

    def _kind(self, body: dict[str, Any], key: str) -> str:
        if body.get("model") != self.model:
            return "unknown model"
        if self.context_words and sum(len(m["content"].split()) for m in body["messages"]) > self.context_words:
            return "too long"
        at, edge = int(key[:8], 16) / 2**32, 0.0
        for fault in self.faults:
            edge += fault.share
            if at < edge:
                return fault.kind if self.seen[key] < fault.times else "reply"
        return "reply"

    def _answer(self, kind: str, body: dict[str, Any]) -> tuple[int, Any, list[tuple[bytes, bytes]]]:
        error = {"error": {"message": "made to fail", "type": "server_error"}}
        if kind == "429":
            return 429, error, [(b"retry-after", b"0.05")]
        if kind == "500":
            return 500, error, []
        if kind == "error body":
            return 200, error, []
        if kind == "unknown model":
            return 404, {"error": {"message": f"the model {body.get('model')!r} does not exist"}}, []
        if kind == "too long":
            message = f"This model's maximum context length is {self.context_words} tokens."
            return 400, {"error": {"message": message, "code": "context_length_exceeded"}}, []
        done = completion(body, self.model, self.say(body))
        message = done["choices"][0]["message"]
        if kind == "empty":
            message["content"] = "  "
        elif kind == "cut-off text":
            message["content"] = message["content"][: len(message["content"]) // 2]
            done["choices"][0]["finish_reason"] = "length"
        elif kind == "all in thoughts":
            message["reasoning_content"], message["content"] = message["content"], ""
        elif kind == "thoughts only":
            message["content"] = "<think>they sound sad"
            message["reasoning_content"] = "what do they need?"
        elif kind == "wrong role":
            message["role"] = "user"
        data = json.dumps(done).encode()
        return 200, data[: len(data) // 2] if kind == "cut-off JSON" else data, []


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def reply(body: dict[str, Any]) -> str:
    """Words fixed by messages, seed and sampling."""
    drawn = digest([body[k] for k in ("messages", "seed", "temperature", "max_tokens") if k in body])
    if JUDGE_PROMPT in body["messages"][0]["content"]:
        return judgement(drawn)
    return " ".join(WORDS[int(c, 16) % len(WORDS)] for c in drawn[:12]) + f" {drawn[:6]}."


def judgement(drawn: str) -> str:
    """A verdict on each of JUDGED, by the hex digits of `drawn`; A and B are likelier than a tie."""
    winners = (("A", "B", "tie")[min(2, int(c, 16) // 7)] for c in drawn)
    said = {
        key: {"winner": winner, "reason": f"because {drawn[:6]}"} for key, winner in zip(JUDGED, winners, strict=False)
    }
    return json.dumps(said)


def completion(body: dict[str, Any], model: str, text: str) -> dict[str, Any]:
    said = {"role": "assistant", "content": text}
    asked, spoken = sum(len(m["content"].split()) for m in body["messages"]), len(text.split())
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": said, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": asked, "completion_tokens": spoken, "total_tokens": asked + spoken},
    }


async def _send(
    send: Any, status: int, body: Any, headers: list[tuple[bytes, bytes]] | None = None, whole: bool = True
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *(headers or [])]})
    if not whole:  # half of the bytes announced; the server then closes the connection
        return await send({"type": "http.response.body", "body": data[: len(data) // 2], "more_body": True})
    await send({"type": "http.response.body", "body": data})


def _server(app: Any) -> tuple[uvicorn.Server, socket.socket, int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    settings: dict[str, Any] = {"log_level": "critical", "lifespan": "off", "backlog": 4096}
    config = uvicorn.Config(app, timeout_keep_alive=60, timeout_graceful_shutdown=1, **settings)
    return uvicorn.Server(config), listener, listener.getsockname()[1]


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Its base URL; the server runs in a thread and ends with the block."""
    server, listener, port = _server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def settle(url: str) -> None:
    """Return once the server has read what was sent to it before, also by a process that is dead."""
    for _ in range(2):
        httpx.get(f"{url}/models", timeout=120.0, trust_env=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port-file", type=Path, required=True, help="gets the port once the server listens")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--delay-s", type=float, default=0.0)
    args = parser.parse_args()
    server, listener, port = _server(FaultServer(FAULTS if args.faults else (), args.delay_s))
    listener.listen(4096)  # from now on a connection waits, though nobody accepts it yet
    args.port_file.write_text(str(port))
    server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
