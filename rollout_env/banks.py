"""The banks that scripts are built from: hidden needs, techniques, and each client's own lines.

There are two: `common` for the train, test and dev clients, and `heldout` for the held-out ones. They
share no need, no technique and no run of eight words (notes of the protocol: a policy must not meet the
final comparison's wording in training).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import Field

from psychepass.config import Config, parse
from psychepass.errors import UserError

DATA = Path(__file__).parent / "data"
SHIPPED = (DATA / "bank_common.yaml", DATA / "bank_heldout.yaml")


class Key(Config):
    """A hidden need or a technique: what a turn that probes it assesses, and the words that give it away.

    A client line that probes the need or technique must contain none of `words` (inflections included), nor of
    `words_zh`, which are for Chinese lines.
    """

    assesses: str
    words: list[str]
    words_zh: list[str]


class Line(Config):
    """One script turn: `say` is spoken as it stands; `short` lines make up the short form.

    `probes` is a local dimension, or "safety" for the line after a Crisis probe.
    """

    say: str
    affect: str
    short: bool = False
    probes: str | None = None
    targets: dict[str, list[str]] = Field(default_factory=dict)


class EmptyTurn(Config):
    """The neutral line that closes a phase; `concluded` are the phase's content words, for Progression."""

    say: str
    concluded: list[str]
    short: bool = False


class PhaseLines(Config):
    """A phase of one client: theme and verbal pattern (PsychePass, Appendix C), lines, closing empty turn."""

    theme: str
    pattern: str
    lines: list[Line]
    empty: EmptyTurn | None = None


class ClientLines(Config):
    """All that one client says, phase by phase; `resistance` acts until the corrective phase."""

    resistance: str
    phases: list[PhaseLines]


class Bank(Config):
    """A named bank; `clients` is keyed by profile id."""

    bank: str
    needs: dict[str, Key]
    techniques: dict[str, Key]
    clients: dict[str, ClientLines]


def load_bank(path: str | Path) -> Bank:
    """Raises UserError for a missing file, bad YAML, an unknown key or a wrong type."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such bank file")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except yaml.YAMLError as e:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from e
    return parse(Bank, tree, str(path))


@cache
def shipped_banks() -> tuple[Bank, ...]:
    """The common and the held-out bank."""
    return tuple(load_bank(path) for path in SHIPPED)


def bank_of(profile_id: str, banks: tuple[Bank, ...] | None = None) -> Bank:
    """The bank that holds the client's lines.

    Raises:
        UserError: no bank holds them, or two do.
    """
    banks = shipped_banks() if banks is None else banks
    found = [b for b in banks if profile_id in b.clients]
    if len(found) != 1:
        held = f"banks {[b.bank for b in found]} all hold" if found else "no bank holds"
        raise UserError(
            f"profile {profile_id!r}: {held} lines for it; exactly one of {[b.bank for b in banks]} must have an "
            f"entry under `clients`"
        )
    return found[0]
