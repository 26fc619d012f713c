"""What a judge's reply says, read strictly; pure functions.

Accepted is one JSON object and nothing else, bare or in a single ```json (or ```) fence. Its keys are the eleven
dimensions asked and `overall`, each once; each value is an object with exactly `winner` ("A", "B" or "tie") and
`reason` (a text that is not blank). Order and JSON whitespace are free. Everything else is no verdict: words before or
after the object (they may take it back), a second object, a key twice, missing, unknown or in other letters, a number
for a winner, NaN, a reply that was cut off. Nothing is repaired and nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, get_args

from psychepass.schema import Dimension, Verdict, Winner

ASKED = tuple(d for d in Dimension if d is not Dimension.DIVERSITY)  # Diversity is computed
OVERALL = "overall"
KEYS = (*(d.value for d in ASKED), OVERALL)
FIELDS = ("winner", "reason")
WINNERS: tuple[Winner, ...] = get_args(Winner)
JSON_SPACE = " \t\r\n"
FENCED = re.compile(r"```(?:json)?[ \t]*\r?\n(.*)\n[ \t]*```", re.DOTALL)


class NoVerdict(ValueError):
    """The reply does not hold a verdict; the message says why, in words for the judge."""


def read_reply(text: str) -> dict[str, Verdict]:
    """The verdict of each of KEYS.

    Raises:
        NoVerdict: the text is anything but what the module says.
    """
    text = text.strip(JSON_SPACE)
    fenced = FENCED.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except NoVerdict:
        raise
    except RecursionError:
        raise NoVerdict("it is nested too deeply") from None
    except ValueError as e:
        raise NoVerdict(f"it is not one JSON object and nothing else ({_plain(str(e))})") from None
    if not isinstance(found, dict):
        raise NoVerdict(f"it is not a JSON object but {_shown(found)}")
    _check_keys(found, KEYS, "the object")
    return {key: _verdict(key, found[key]) for key in KEYS}


def output_format() -> str:
    """The form asked for, as the prompt shows it."""
    rows = [f'  "{key}": {{"reason": "...", "winner": "A" or "B" or "tie"}}' for key in KEYS]
    return "{\n" + ",\n".join(rows) + "\n}"


def _verdict(key: str, value: Any) -> Verdict:
    if not isinstance(value, dict):
        raise NoVerdict(f'"{key}" is {_shown(value)}, not an object with "winner" and "reason"')
    _check_keys(value, FIELDS, f'"{key}"')
    winner, reason = value["winner"], value["reason"]
    if not isinstance(winner, str) or winner not in WINNERS:
        raise NoVerdict(f'the winner of "{key}" is {_shown(winner)}; permitted: "A", "B", "tie"')
    if not isinstance(reason, str) or not reason.strip():
        raise NoVerdict(f'the reason of "{key}" is {_shown(reason)}; expected a text')
    if not is_unicode(reason):
        raise NoVerdict(f'the reason of "{key}" has half of a character (a lone surrogate)')
    return Verdict(winner=winner, reason=reason.strip())


def is_unicode(text: str) -> bool:
    """Whether the text can be written: JSON can hold half of a character, UTF-8 cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _check_keys(found: Mapping[str, Any], permitted: tuple[str, ...], where: str) -> None:
    unknown = [k for k in found if k not in permitted]
    missing = [k for k in permitted if k not in found]
    if unknown:
        raise NoVerdict(f"{where} has the unknown key {_shown(unknown[0])}; permitted: {', '.join(permitted)}")
    if missing:
        raise NoVerdict(f"{where} lacks {', '.join(missing)}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(k for i, (k, _) in enumerate(pairs) if k in (other for other, _ in pairs[:i]))
        raise NoVerdict(f"the key {_shown(twice)} stands twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise NoVerdict(f"{name} is not JSON")


def _shown(value: Any) -> str:
    """A value as a message may repeat it: short, and plain ASCII, so that a look-alike letter shows as what it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _plain(text: str) -> str:
    return text if len(text) <= 120 else text[:120] + "..."
