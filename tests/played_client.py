"""A made-up model that plays clients: it says its script's line, or leaves it in a way fixed by what it is sent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from psychepass.cli import main as cli
from tests.endpoint_rig import write_config
from tests.fault_server import CLIENT_TEMPERATURE, MODEL, digest, reply

TASK = re.compile(r'(?:contradicts it|for example): "(.*)"$', re.MULTILINE)
LONG = "and it went on and on " * 40
# what is said in place of the script's line, by the kind of violation that it is
OFF = {
    "off trigger": "Nothing of the kind.",
    "not minimal": "So what do you make of all this, and where should we begin?",
    "too long": "{trigger} " + LONG,
    "stage direction": "*sighs* {trigger}",
    "role label": "Client: {trigger}",
    "helper's words": "{trigger} How can I help you?",
    "method detail": "{trigger} There are pills.",
}
SHARE = 0.5  # of drafts that leave the script


def client(url: str, **change: Any) -> dict[str, Any]:
    """The key `client` of a config; `change` is the endpoint's."""
    endpoint = {"base_url": url, "model": MODEL, "price": {"input": 1.0, "output": 2.0}, "timeout_s": 60.0} | change
    return {"endpoint": endpoint, "sampling": {"temperature": CLIENT_TEMPERATURE, "max_tokens": 96}}


def hold(folder: Path, url: str, therapists: list[dict[str, Any]], clients: int = 2, **change: Any) -> tuple[int, Path]:
    """The stage, with a client that a model plays unless `change` says otherwise: exit code and run."""
    config = write_config(folder, therapists, clients, **({"client": client(url)} | change))
    return cli(["simulate", str(config)]), folder / "run"


def is_client(body: dict[str, Any]) -> bool:
    return body["messages"][0]["content"].startswith("You play ")


def trigger_of(body: dict[str, Any]) -> str:
    """The script's line, as the client's prompt tells it."""
    found = TASK.search(body["messages"][0]["content"])
    assert found, body["messages"][0]["content"]
    return found.group(1)


def drawn_kind(body: dict[str, Any]) -> str:
    """The kind of violation that this call is answered with; "" for none."""
    drawn = int(digest([body["messages"], body["seed"]])[:8], 16) / 2**32
    return list(OFF)[int(drawn / SHARE * len(OFF))] if drawn < SHARE else ""


def speak(body: dict[str, Any]) -> str:
    """For FaultServer: clients as above, therapists as ever."""
    if not is_client(body):
        return reply(body)
    kind = drawn_kind(body)
    return OFF[kind].format(trigger=trigger_of(body)) if kind else trigger_of(body)


def obedient(body: dict[str, Any]) -> str:
    """A client that says its script's line always."""
    return trigger_of(body) if is_client(body) else reply(body)
