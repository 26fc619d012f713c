"""feedback_esconv's rows as conversational ones: a counsellor's rewritten reply is chosen, the helper's own rejected.

The set (SALT-NLP/counseling-feedback, over ESConv) labels helper turns with the areas they were good and bad in, and
with an alternative reply where they were not perfect. It belongs to its authors and is not part of this project.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from psychepass.errors import UserError
from psychepass.schema import Dimension

# its areas and the dimensions that they are asked under: the nearest, and each once
AREAS = {
    "Empathy": Dimension.EMPATHY,
    "Questions": Dimension.ENGAGEMENT,
    "Suggestions": Dimension.SUGGESTION,
    "Validation": Dimension.TRAUMA,
    "Reflections": Dimension.DISCERNMENT,
    "Self-disclosure": Dimension.ETHICS,
    "Professionalism": Dimension.SKILL,
    "Structure": Dimension.PROGRESSION,
}
COLUMNS = {"text", "conv_index"}
SPEAKERS = {"Helper": "assistant", "Seeker": "user"}


def recognised(row: Mapping[str, Any]) -> bool:
    """Whether `row` has the set's columns, and not those of conversational rows."""
    return row.keys() >= COLUMNS and not row.keys() & {"chosen", "rejected"}


def conversational(rows: Iterable[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Labelled helper turns as rows of datasets' conversational form: one for each area that a turn was bad in, none
    for a turn without another reply.

    Raises:
        UserError: the first row of another shape, by its number (from 1) in `name`.
    """
    found: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        try:
            found += _pairs(row)
        except (KeyError, ValueError, TypeError, AttributeError) as e:
            raise UserError(
                f"{name}, row {number}: not as feedback_esconv writes it ({type(e).__name__}: {e}); permitted: a text "
                "with `### Input:` and `### Response:`, a label of JSON after it, and conv_index"
            ) from e
    return found


def _pairs(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    asked, mark, answer = row["text"].partition("### Response:")
    if not mark:
        raise ValueError("no `### Response:`")
    label = json.loads(answer)
    if not label.get("alternative", "").strip():
        return
    parts = re.split(r"^(Helper|Seeker): ?", asked.partition("### Input:")[2].strip(), flags=re.M)[1:]
    said = [{"role": SPEAKERS[s], "content": t.strip()} for s, t in zip(parts[::2], parts[1::2], strict=True)]
    if not said or said[-1]["role"] != "assistant":
        raise ValueError("the conversation does not end with the helper")
    *prompt, own = said
    if not prompt or prompt[0]["role"] == "assistant":
        prompt = [{"role": "user", "content": ""}, *prompt]  # the excerpt begins with the helper
    rewritten = {"role": "assistant", "content": label["alternative"].strip()}
    for area in dict.fromkeys(label["badareas"]):
        if area in AREAS and rewritten != own:
            yield {
                "prompt": prompt,
                "chosen": [rewritten],
                "rejected": [own],
                "dimension": AREAS[area].value,
                "client": f"dialogue-{row['conv_index']}",
            }
