"""What of the reference judge can be read of a conversation that follows no script of ours.

The judge scores replies to scripted probes: most of its slots compare a reply with a target that the script names (the
hidden need, the technique, the absolute, the concluded phase, the named event, the concern, the request, the facts).
Without a script there is no target, and these are NOT applicable: Discernment, Skill, Reframing, Progression, Crisis,
Ethics, Memory, and Trauma's choice and grounding. Diversity is a figure of a whole session's vocabulary; no set here
has a human score of it. What reads the words of client and reply alone, with the rules and word lists as they are:

  Empathy        reflection; affect only where the client's own words name an affect of the judge's list (a departure:
                 in a session the script names it), the best of those named; zero on dismissal or a repeated frame
  Engagement     open question and collaboration; zero on three or more questions; mean over replies, full at 60 %
  Suggestion     action, amount, feasibility; zero on more than two actions (the scripted goal only widens the link)
  single slots   Empathy's reflection, Engagement's open question, Suggestion's action, Trauma's validation, Ethics's
                 warmth (its cue list), and Empathy's zero `dismissal`

q has its terms but for length (nobody asked for one) and for crisis boilerplate (whether a turn is one is not known).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from psychepass.schema import Dimension as D
from psychepass.schema import Phase
from tournament.lexicon import Lexicon
from tournament.reference_context import Text, TurnContext
from tournament.reference_judge import ENGAGEMENT_SATURATION
from tournament.reference_quality import quality_terms
from tournament.reference_slots import SLOTS, Reading, Slot, assign
from tournament.reference_zero import zeroed

Line = tuple[str, str]  # speaker ("client" or "helper"), words
SPEAKERS = {"Seeker": "client", "Supporter": "helper"}
FEATURES = (
    "Empathy", "Engagement", "Suggestion", "reflection", "open question", "action", "validation", "warmth", "dismissal",
)  # fmt: skip
SINGLE = {"reflection": D.EMPATHY, "open question": D.ENGAGEMENT, "action": D.SUGGESTION, "validation": D.TRAUMA,
          "warmth": D.ETHICS}  # fmt: skip
UNKNOWN = ("length", "boilerplate")


def lines_of(text: str) -> list[Line]:
    """A conversation written with `Seeker:` and `Supporter:` at line starts."""
    parts = re.split(r"^\s*(Seeker|Supporter): ?", text, flags=re.MULTILINE)[1:]
    return [(SPEAKERS[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def contexts_of(lines: Sequence[Line]) -> list[TurnContext]:
    """The helper's replies, each with the client's words before it; a helper's opening is left out. Lines of one
    speaker in a row are one."""
    joined: list[Line] = []
    for who, said in lines:
        if joined and joined[-1][0] == who:
            joined[-1] = (who, f"{joined[-1][1]}\n{said}")
        else:
            joined.append((who, said))
    if joined and joined[0][0] == "helper":
        joined = joined[1:]
    client, helper = ([Text.parse(said) for who, said in joined if who == name] for name in ("client", "helper"))
    return [
        TurnContext(
            turn=i + 1,
            phase=Phase.ALLIANCE,  # read by Progression alone
            dimension=None,
            targets={},
            is_empty=False,
            target_words=max(1, len(reply.words)),
            line=client[i],
            reply=reply,
            lines=tuple(client[:i]),
            phase_lines=tuple(client[:i]),
            replies=tuple(helper[:i]),
        )
        for i, reply in enumerate(helper)
    ]


def features(context: TurnContext, lexicon: Lexicon) -> dict[str, float]:
    """The features of one reply, each in [0, 1]."""
    reading = Reading(context, lexicon)
    q = min(value for name, value in quality_terms(context, lexicon).items() if name not in UNKNOWN)
    slots = {name: _slot(d, name) for name, d in SINGLE.items()}
    found = {name: q * bool(assign(reading, (slot,))) for name, slot in slots.items()}
    found["Empathy"] = _empathy(reading, q)
    for d in (D.ENGAGEMENT, D.SUGGESTION):
        filled = assign(reading, SLOTS[d])
        found[d.value.capitalize()] = 0.0 if zeroed(d, reading, filled) else q * len(filled) / len(SLOTS[d])
    found["dismissal"] = float(_dismisses(reading))
    return {name: round(found[name], 6) for name in FEATURES}


def conversation(lines: Sequence[Line], lexicon: Lexicon) -> dict[str, float]:
    """Mean over the helper's replies; Engagement full at 60 %, as in a session."""
    replies = [features(c, lexicon) for c in contexts_of(lines)]
    found = {name: fmean(r[name] for r in replies) for name in FEATURES}
    return found | {"Engagement": min(1.0, found["Engagement"] / ENGAGEMENT_SATURATION)}


def last_reply(lines: Sequence[Line], lexicon: Lexicon) -> dict[str, float]:
    return features(contexts_of(lines)[-1], lexicon)


def _slot(d: D, name: str) -> Slot:
    return next(s for s in SLOTS[d] if s.name == name)


def _dismisses(reading: Reading) -> bool:
    return any(reading.asserts("dismissal", s) for s in reading.sentences)


def _empathy(reading: Reading, q: float) -> float:
    """With the affects that the client's line names, the best one; without, the reflection alone."""
    named = [key for key, cues in reading.lexicon.keyed["affect"].items()
             if any(cues.has(s) for s in reading.context.line.sentences)]  # fmt: skip
    if not named:
        return 0.0 if _dismisses(reading) else q * bool(assign(reading, (_slot(D.EMPATHY, "reflection"),)))
    best = 0.0
    for key in named:
        read = Reading(replace(reading.context, targets={"affect": (key,)}), reading.lexicon)
        filled = assign(read, SLOTS[D.EMPATHY])
        if not zeroed(D.EMPATHY, read, filled):
            best = max(best, q * len(filled) / len(SLOTS[D.EMPATHY]))
    return best
