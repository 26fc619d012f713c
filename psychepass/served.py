"""Which models answered: the name that was asked for may be an alias, and what it stands for may change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from psychepass.ledger import read_calls


def served_models(ledger: Path) -> dict[str, list[str]]:
    """`model at address` as asked for -> the models that its answers name, sorted; {} where there is no ledger."""
    found: dict[str, set[str]] = {}
    for call in read_calls(ledger) if ledger.is_file() else ():
        if call.served_model:
            found.setdefault(f"{call.model} at {call.base_url}", set()).add(call.served_model)
    return {asked: sorted(served) for asked, served in sorted(found.items())}


def several_served(served: Mapping[str, list[str]]) -> str:
    """For the person who watches; empty where each name was served by one model."""
    told = [f"{asked} was served by {', '.join(names)}" for asked, names in served.items() if len(names) > 1]
    return "; ".join(told)
