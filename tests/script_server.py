"""A made-up model that writes scripts: the shipped banks' own lines as JSON, at first with a fault where told so."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from rollout_env.banks import shipped_banks
from rollout_env.profiles import load_profiles
from tests import chinese_client

SHIPPED = load_profiles()


def bank_lines(profile_id: str) -> dict[str, Any]:
    """What the bank holds of a client, as a model would send it."""
    tree = next(b for b in shipped_banks() if profile_id in b.clients).clients[profile_id].model_dump()
    for phase in tree["phases"]:
        for line in (*phase["lines"], *([phase["empty"]] if phase["empty"] else [])):
            del line["short"]
        if phase["empty"]:  # a word that no line says, and that a model's answer may not have
            phase["empty"]["concluded"] = [w for w in phase["empty"]["concluded"] if w != "pills"]
    return tree


def _probe(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return next(line for phase in tree["phases"] for line in phase["lines"] if line["probes"] == name)


def _plain(tree: dict[str, Any], phase: int) -> list[dict[str, Any]]:
    """Lines that probe nothing."""
    return [line for line in tree["phases"][phase]["lines"] if line["probes"] is None]


def _no_crisis(tree: dict[str, Any]) -> None:
    _probe(tree, "crisis").update(probes=None, targets={})


def _late_crisis(tree: dict[str, Any]) -> None:
    line = copy.deepcopy(_probe(tree, "crisis"))
    _plain(tree, 4)[-1].update(line | {"say": f"Even so, {line['say']}"})


def _short_phase(tree: dict[str, Any]) -> None:
    tree["phases"][0]["lines"].pop()


def _reply(tree: dict[str, Any]) -> None:
    _plain(tree, 3)[0]["say"] = "Thanks, that helps, I will try that."


def _need_named(tree: dict[str, Any]) -> None:
    line = _probe(tree, "discernment")
    line["say"] += " I want to belong, be approved, in control, safe, able, rested, close."


def _unsafe(tree: dict[str, Any]) -> None:
    tree["phases"][1]["lines"][0]["say"] += " There are pills."


def _extra_key(tree: dict[str, Any]) -> None:
    tree["title"] = "A session"


def _bad_target(tree: dict[str, Any]) -> None:
    _probe(tree, "memory")["targets"]["fact_1_turn"] = ["one"]


# fault -> (how to make it, what its draft must say)
FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no crisis": (_no_crisis, "does not probe crisis"),
    "late crisis": (_late_crisis, "is among the last three turns"),
    "short phase": (_short_phase, "phases of [4, 5, 15, 10, 5] lines"),
    "reply": (_reply, "depends on a reply"),
    "need named": (_need_named, "names its need"),
    "unsafe": (_unsafe, "it names a means of harm (withheld)"),
    "extra key": (_extra_key, "unknown key 'title'"),
    "bad target": (_bad_target, "required: fact_1, fact_2"),
    "broken JSON": (lambda tree: None, "not one JSON object"),
}


def writer(faulty: Mapping[str, str], always: Mapping[str, str] | None = None) -> Callable[[dict[str, Any]], str]:
    """For FaultServer: `faulty` (profile id -> fault) at the first try only, `always` at every one."""

    def speak(body: dict[str, Any]) -> str:
        asked = body["messages"][0]["content"]
        if chinese_client.PROFILE.name in asked:
            profile_id, tree = chinese_client.PROFILE.profile_id, chinese_client.lines()
        else:
            profile_id = next(i for i, p in SHIPPED.items() if f'"name": "{p.name}"' in asked)
            tree = bank_lines(profile_id)
        first = len(body["messages"]) == 1 and "An earlier answer failed" not in asked
        fault = (always or {}).get(profile_id) or (faulty.get(profile_id) if first else None)
        if fault:
            FAULTS[fault][0](tree)
        text = json.dumps(tree, ensure_ascii=False)
        return text[:-20] if fault == "broken JSON" else f"```json\n{text}\n```"

    return speak
