"""Stage `serve-rm`: the trained reward model as an HTTP service (its client is psychepass/scoring.py).

    GET  /health -> {"status": "ok", "model": ID, "waiting": groups, "busy_s": seconds of the pass under way,
                    "dimensions": those that the model was trained on, null where its card does not say}
    POST /score  {"groups": [{"context", "responses", "dimensions"}]}
                 -> {"model": ID, "rewards": [group][response][dimension]}

Bad input is 422, overload 503 with Retry-After, as is a service that is told to stop, and a model that does not answer
503 on /health, each with {"error": "one sentence"}. A dimension that the model was never trained on is answered, and
said on standard error once. Groups that wait and share a context are scored together (reward_model/batching.py); up to
rounding a reward does not depend on what else is asked.

The stage serves until it is told to stop, so it has no manifest. `<run>/scorer.json` holds its address. Where the
process that holds the model dies, its keeper starts another at the same address (reward_model/keeper.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import say
from psychepass.schema import Dimension, Frozen
from psychepass.scoring import SCORER_FILE, ScoreGroup, untrained
from reward_model.keeper import keep

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from reward_model.scorer import GroupScorer

STUCK_S = 60.0  # a pass is one tree: seconds on a CPU, parts of one on a GPU
PROBE_S = 4.0  # the client gives a health check 5 s


class ServeConfig(StageConfig):
    """`model`: a saved reward model, null for the run's own. `port` 0 takes any free one. Where more than
    `max_waiting` groups would wait, a request gets 503 and is to be sent again.
    """

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    max_waiting: int = Field(default=256, ge=1)


class ScoreRequest(Frozen):
    groups: tuple[ScoreGroup, ...]


def main(config_path: str, overrides: list[str]) -> None:
    config = load(ServeConfig, config_path, overrides)
    path, keeper = Path(config.run) / SCORER_FILE, os.getpid()
    listener = listen(config.host, config.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        keep("serve-rm", lambda ready: answer(config, listener, path, keeper, ready))
    finally:
        listener.close()
        if path.is_file() and records.read_json(path)["pid"] == keeper:
            path.unlink()


def answer(config: ServeConfig, listener: socket.socket, path: Path, keeper: int, ready: Callable[[], None]) -> None:
    """Load the model, write the address under the keeper's process id, and answer until this process ends.

    Raises:
        UserError: no model there, or one that gives no finite reward to a first, tiny group.
    """
    import torch

    from reward_model.batching import PROBE
    from reward_model.scorer import GroupScorer

    folder = Path(config.model) if config.model else Path(config.run) / "reward_model"
    scorer = GroupScorer.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    try:
        scorer.score([PROBE])
    except FloatingPointError as e:
        raise UserError(f"{folder}: {e}; train it again") from e
    app = make_app(scorer, config.max_waiting)
    host, port = listener.getsockname()[:2]
    address = {"url": f"http://{host}:{port}", "pid": keeper, "model": scorer.name}
    stop_earlier(path, keeper)
    records.write_json(path, address)
    say(f"serve-rm: {scorer.name} at {address['url']} (address in {path})")
    ready()
    server_of(app).run(sockets=[listener])


def stop_earlier(path: Path, keeper: int) -> None:
    """A run has one service: end the one that a killed caller left behind, if its process is still one."""
    if not path.is_file():
        return
    pid = int(records.read_json(path)["pid"])
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return
    if b"serve-rm" in command and pid != keeper:
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
    listener.listen(1024)
    return listener


def server_of(app: FastAPI) -> uvicorn.Server:
    """Told to stop, it waits a second for the answers under way; whoever still waits is to ask again."""
    import uvicorn

    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))


def make_app(scorer: GroupScorer, max_waiting: int) -> FastAPI:
    """The service over a loaded model."""
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    from reward_model.batching import Batcher, Overloaded

    batcher = Batcher(scorer, max_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)  # the refusals of those who wait go out meanwhile

    app = FastAPI(title="PsychePass scorer", docs_url=None, redoc_url=None, lifespan=lifespan)

    def error(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": text}, status_code=status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def refused(_: Request, e: RequestValidationError) -> JSONResponse:
        return error(422, sentence(e))

    @app.get("/health")
    async def health() -> Any:
        waiting = batcher.waiting
        if not waiting and not batcher.busy_s:
            try:
                await asyncio.wait_for(asyncio.wrap_future(batcher.probe()), PROBE_S)
            except TimeoutError:  # a group that came first is under way, or the model hangs: busy_s tells
                pass
            except Exception as e:
                return error(503, f"model {scorer.name} does not answer: {type(e).__name__}: {e}")
        busy_s = batcher.busy_s
        if busy_s > STUCK_S:
            return error(503, f"model {scorer.name} has been busy with one pass for {busy_s:.0f} s; {waiting} wait")
        said = {"status": "ok", "model": scorer.name, "waiting": waiting, "busy_s": round(busy_s, 3)}
        return said | {"dimensions": scorer.dimensions}

    told: set[Dimension] = set()

    @app.post("/score")
    async def score(request: ScoreRequest) -> Any:
        unlearnt = untrained(scorer.dimensions, (d for group in request.groups for d in group.dimensions)) or ()
        for dimension in (d for d in unlearnt if d not in told):
            told.add(dimension)
            say(f"serve-rm: {scorer.name} was never trained on {dimension}; its rewards there mean nothing")
        try:
            futures = await run_in_threadpool(batcher.submit, request.groups)
            rewards = await asyncio.gather(*map(asyncio.wrap_future, futures))
        except UserError as e:
            return error(422, str(e))
        except asyncio.CancelledError:  # told to stop; uvicorn would answer 500, which no caller tries again
            return error(503, "the service is stopping; send this request again", {"Retry-After": "1"})
        except Overloaded as e:
            return error(503, str(e), {"Retry-After": str(e.retry_s)})
        except (FloatingPointError, RuntimeError) as e:
            return error(500, f"{type(e).__name__}: {e}")
        return {"model": scorer.name, "rewards": rewards}

    return app


def sentence(e: Any) -> str:
    """The first fault of a refused request: field, what is permitted, the value found."""
    fault = e.errors()[0]
    field = ".".join(str(part) for part in fault["loc"] if part != "body") or "body"
    value = repr(fault.get("input"))
    more = f" (and {len(e.errors()) - 1} more)" if len(e.errors()) > 1 else ""
    return f"{field}: {fault['msg']}, got {value[:120]}{more}"
