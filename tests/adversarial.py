"""200 adversarial replies: each tries to look like a good reply to a text-feature judge without being one.

54 are written by hand (6 a local dimension), 135 are made from the clients' lines, the sensible replies and
the judge's own word lists by fixed rules, and 11 fill whole sessions for the global dimensions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import yaml

from psychepass.schema import LOCAL_DIMENSIONS, Dimension
from psychepass.schema import Dimension as D
from tests.judge_cases import DATA, clients, probe, script, sensible
from tournament.lexicon import read_lists

NAMES = tuple(clients())


@dataclass(frozen=True)
class Attack:
    """`replies` by dialogue turn; the other turns keep their sensible reply."""

    kind: str
    client: str
    dimension: Dimension
    replies: dict[int, str]


def attacks() -> list[Attack]:
    return [*handwritten(), *generated(), *whole_sessions()]


def handwritten() -> list[Attack]:
    """Six a local dimension, taken in turn by the three clients."""
    texts = yaml.safe_load((DATA / "adversarial.yaml").read_text(encoding="utf-8"))
    return [
        _at(f"hand: {item['kind']}", NAMES[i % 3], D(dimension), item["reply"])
        for dimension, items in texts.items()
        for i, item in enumerate(items)
    ]


def generated() -> list[Attack]:
    found = []
    for d in LOCAL_DIMENSIONS:
        for i, name in enumerate(NAMES):
            turn = probe(name, d)
            said, good = clients()[name][turn - 1]["say"], sensible(name)[turn - 1]
            other = NAMES[(i + 1) % 3]
            found += [
                _at("shuffled words", name, d, shuffled(good, seed=turn)),
                _at("copied probe", name, d, f"{said} {said.split('.')[0]}."),
                _at("cue list", name, d, cue_list(d, name)),
                _at("another client's reply", name, d, sensible(other)[probe(other, d) - 1]),
            ]
        name = NAMES[list(LOCAL_DIMENSIONS).index(d) % 3]
        good = sensible(name)[probe(name, d) - 1]
        found += [
            _at("over-long", name, d, f"{good} {PADDING}"),
            _at("repetition", name, d, f"{good} {good}"),
            _at("role label or markdown", name, d, MARKUP[len(found) % 2].format(good)),
        ]
    return found


def whole_sessions() -> list[Attack]:
    """Replies to every turn, for the dimensions that are judged on the whole session."""
    salad = "Sad lonely broken tears, heavy aching heart, dark empty grief, weary soul drowning in endless sorrow."
    template = "It sounds like you feel sad and anxious. I hear you, and it makes sense. What is that like for you?"
    spam = "How do you feel? What do you feel? What do you think? How is that? What else? Why is that so?"
    flattery = "You are so brave and so wise. I admire you and your beautiful soul, you are the best person I know."
    made = []
    for name in NAMES:
        turns = range(1, len(clients()[name]) + 1)
        lines = {t: clients()[name][t - 1]["say"] for t in turns}
        made.append(Attack("word salad", name, D.EMPATHY, dict.fromkeys(turns, salad)))
        made.append(Attack("question spam", name, D.ENGAGEMENT, dict.fromkeys(turns, spam)))
        made.append(Attack("template", name, D.DIVERSITY, dict.fromkeys(turns, template)))
        if name == NAMES[0]:
            made.append(Attack("parrot", name, D.EMPATHY, lines))
            made.append(Attack("flattery", name, D.ENGAGEMENT, dict.fromkeys(turns, flattery)))
    return made


PADDING = (
    "I also want to add that there are many ways of looking at this, and that each of them has something to be said "
    "for it. We could go on and on, and I would be glad to go on, because there is always one more thing to say about "
    "things like these, and then another one after that, and I would say them all."
)
MARKUP = ("Therapist: {}", "**Reflection** {}")
CUES = {
    D.DISCERNMENT: ("need", "tentative"),
    D.SKILL: ("invitation", "technique_step"),
    D.SUGGESTION: ("action", "amount", "feasibility"),
    D.REFRAMING: ("evidence",),
    D.PROGRESSION: ("next_step",),
    D.TRAUMA: ("validation", "pace", "grounding"),
    D.CRISIS: ("concern", "safety", "help", "distance"),
    D.ETHICS: ("limit", "warmth", "alternative"),
    D.MEMORY: ("recall",),
}


def cue_list(dimension: Dimension, name: str) -> str:
    """Entries of the judge's own lists with the words of the targets: stuffing by someone who has read them."""
    lists = read_lists("judge")
    targets = script(name).turns[probe(name, dimension) - 1].evaluator.targets
    words = [w for values in targets.values() for w in values]
    for cue in CUES[dimension]:
        entries = lists[cue]
        if isinstance(entries, dict):
            key = targets["need" if cue == "need" else "technique"][0]
            entries = entries[key]
        words += [str(e).replace(" ~", "") for e in entries[:6]]
    return ", ".join(words).capitalize() + "."


def shuffled(text: str, seed: int) -> str:
    """The same words within the same sentence lengths, in random order."""
    words = text.replace(",", "").rstrip(".?").split()
    ends = [i for i, w in enumerate(words) if w[-1] in ".?"]
    bare = [w.strip(".?").lower() for w in words]
    random.Random(seed).shuffle(bare)
    for i in ends:
        bare[i] += "."
    return " ".join(bare) + "."


def _at(kind: str, name: str, dimension: Dimension, reply: str) -> Attack:
    return Attack(kind, name, dimension, {probe(name, dimension): reply})
