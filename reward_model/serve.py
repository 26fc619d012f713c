"""Stage `serve-rm`: the trained reward model as an HTTP service (its client is psychepass/scoring.py).

GET /health -> {"status": "ok", "model": ID}. POST /score {"groups": [{"context", "responses", "dimensions"}]}
-> {"model": ID, "rewards": [group][response][dimension]}. Bad input is 422, overload 503, each with
{"error": "one sentence"}. Groups are scored one at a time, so a reward does not depend on what else is asked.

The stage serves until it is told to stop, so it has no manifest. `<run>/scorer.json` holds its address.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import say
from psychepass.schema import Frozen
from psychepass.scoring import SCORER_FILE, ScoreGroup

if TYPE_CHECKING:
    from fastapi import FastAPI

    from reward_model.scorer import GroupScorer


class ServeConfig(StageConfig):
    """`model`: a saved reward model, null for the run's own. `port` 0 takes any free one. Above
    `max_requests` at once, further ones get 503 and are to be sent again; the server has 40 threads.
    """

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    max_requests: int = Field(default=32, ge=1, le=32)


class ScoreRequest(Frozen):
    groups: tuple[ScoreGroup, ...]


def main(config_path: str, overrides: list[str]) -> None:
    config = load(ServeConfig, config_path, overrides)
    folder = Path(config.model) if config.model else Path(config.run) / "reward_model"

    import torch
    import uvicorn

    from psychepass.matmul import fast_fp32
    from reward_model.scorer import GroupScorer

    fast_fp32()
    scorer = GroupScorer.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    listener = listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    address = {"url": f"http://{host}:{port}", "pid": os.getpid(), "model": scorer.name}
    path = Path(config.run) / SCORER_FILE
    stop_earlier(path)
    records.write_json(path, address)
    say(f"serve-rm: {scorer.name} at {address['url']} (address in {path})")
    server = uvicorn.Server(uvicorn.Config(make_app(scorer, config.max_requests), log_level="warning"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once it has shut down
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        if path.is_file() and records.read_json(path) == address:
            path.unlink()


def stop_earlier(path: Path) -> None:
    """A run has one service: end the one that a killed caller left behind, if its process is still one."""
    if not path.is_file():
        return
    pid = int(records.read_json(path)["pid"])
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return
    if b"serve-rm" in command and pid != os.getpid():
        say(f"serve-rm: stopping the earlier service of this run (process {pid})")
        os.kill(pid, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A bound, listening socket. Raises UserError where the address is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        raise UserError(f"serve-rm: cannot listen on {host}:{port} ({e.strerror}); port=0 takes any free port") from e
    listener.listen(128)
    return listener


def make_app(scorer: GroupScorer, max_requests: int) -> FastAPI:
    """The service over a loaded model."""
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    app = FastAPI(title="PsychePass scorer", docs_url=None, redoc_url=None)
    free = threading.BoundedSemaphore(max_requests)

    def error(status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": text}, status_code=status)

    @app.exception_handler(RequestValidationError)
    async def refused(_: Request, e: RequestValidationError) -> JSONResponse:
        return error(422, sentence(e))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": scorer.name}

    @app.post("/score")
    def score(request: ScoreRequest) -> Any:
        if not free.acquire(blocking=False):
            return error(503, f"{max_requests} requests are being scored; send this one again later")
        try:
            return {"model": scorer.name, "rewards": scorer.score(request.groups)}
        except UserError as e:
            return error(422, str(e))
        except FloatingPointError as e:
            return error(500, str(e))
        finally:
            free.release()

    return app


def sentence(e: Any) -> str:
    """The first fault of a refused request: field, what is permitted, the value found."""
    fault = e.errors()[0]
    field = ".".join(str(part) for part in fault["loc"] if part != "body") or "body"
    value = repr(fault.get("input"))
    more = f" (and {len(e.errors()) - 1} more)" if len(e.errors()) > 1 else ""
    return f"{field}: {fault['msg']}, got {value[:120]}{more}"
