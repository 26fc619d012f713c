"""Judges' replies, valid and mutated, and an oracle that reads what a text says without the parser's means.

for kind, text in mutated(10_000, seed=0): holds(text)       # {key: (winner, reason)} or None
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator

KEYS = (
    *("empathy", "discernment", "engagement", "skill", "suggestion", "reframing", "progression", "trauma", "crisis"),
    *("ethics", "memory", "overall"),
)
REASONS = (
    "A names the feeling, B does not.",
    'B says "I hear you" and stays; A is quick to advise.',
    "Both are alike: {no} difference, A or B.",
    "A 更能理解来访者。",
    "B asks about safety\nand names a person to call.",
    'winner: "tie" would be wrong; A is better.',
)
LOOK_ALIKE = {"A": "А", "B": "В", "e": "е", "o": "о", "t": "ｔ", "i": "і", '"': "”", ":": "：", "{": "｛"}
OTHER_WORDS = (
    "a",
    "Therapist A",
    "A is better",
    "0",
    "both",
    "neither",
    "TIE",
    "Tie",
    "draw",
    "A ",
    "",
    "AB",
    "A or B",
    "C",
)
PROSE = (
    "Here is my verdict:\n",
    "Sure! ",
    "On reflection I would swap A and B.\n",
    "<b>",
    "// verdict\n",
    "Note: A = B\n",
)
OTHER_TYPES = (None, True, 1, 0.5, ["A"], {"value": "A"}, [], {})

Tree = dict[str, dict[str, str]]
Mutation = Callable[[random.Random, Tree], str]


def valid(rng: random.Random) -> Tree:
    keys = list(KEYS)
    rng.shuffle(keys)
    return {k: {"winner": rng.choice(("A", "B", "tie")), "reason": rng.choice(REASONS)} for k in keys}


def text_of(tree: object, rng: random.Random) -> str:
    return json.dumps(tree, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1, 2)))


# --- mutations: each gives a text that may or may not hold a verdict -------------------------------


def cut(rng: random.Random, tree: Tree) -> str:
    text = text_of(tree, rng)
    at = rng.randrange(1, len(text))
    return text[:at] if rng.random() < 0.7 else text[at:]


def one_character(rng: random.Random, tree: Tree) -> str:
    text = text_of(tree, rng)
    at = rng.randrange(len(text))
    new = rng.choice(("", text[at] * 2, rng.choice('{}[]",:\\AB \n\x00\t1'), chr(rng.choice((0xFEFF, 0x200B, 0xA0)))))
    return text[:at] + new + text[at + 1 :]


def look_alike(rng: random.Random, tree: Tree) -> str:
    text = text_of(tree, rng)
    places = [i for i, c in enumerate(text) if c in LOOK_ALIKE]
    for i in rng.sample(places, rng.randint(1, 3)):
        text = text[:i] + LOOK_ALIKE[text[i]] + text[i + 1 :]
    return text


def prose(rng: random.Random, tree: Tree) -> str:
    text, said = text_of(tree, rng), rng.choice(PROSE)
    return rng.choice((said + text, text + "\n" + said, said + text + said))


def fence(rng: random.Random, tree: Tree) -> str:
    text = text_of(tree, rng)
    first = rng.choice(
        ("```json\n", "```\n", "```json  \r\n", "```python\n", "```json ", "~~~\n", "````\n", "``` json\n")
    )
    last = rng.choice(("\n```", "\n  ```", "```", "\n```\nB after all.", "\n``", "\n```\n```json\n{}\n```"))
    return first + text + last


def renamed_key(rng: random.Random, tree: Tree) -> str:
    key = rng.choice(KEYS)
    new = rng.choice((key.upper(), key.capitalize(), key + " ", f"{key}s", "diversity", "Comprehensive Evaluation", ""))
    return text_of({new if k == key else k: v for k, v in tree.items()}, rng)


def swapped_values(rng: random.Random, tree: Tree) -> str:
    one, other = rng.sample(KEYS, 2)
    return text_of({**tree, one: tree[other], other: tree[one]}, rng)


def missing_or_extra(rng: random.Random, tree: Tree) -> str:
    if rng.random() < 0.5:
        for key in rng.sample(KEYS, rng.randint(1, 3)):
            del tree[key]
        return text_of(tree, rng)
    extra = {rng.choice(("diversity", "score", "comment", "winner", "")): rng.choice((tree["empathy"], "A", 1))}
    inner = {**tree["skill"], "confidence": "high"}
    return text_of(rng.choice(({**tree, **extra}, {**tree, "skill": inner})), rng)


def duplicated_key(rng: random.Random, tree: Tree) -> str:
    text, key = json.dumps(tree), rng.choice(KEYS)
    again = json.dumps({key: {"winner": rng.choice(("A", "B", "tie")), "reason": "again"}})[1:-1]
    if rng.random() < 0.5:
        return rng.choice((text[:-1] + ", " + again + "}", "{" + again + ", " + text[1:]))
    inner = json.dumps(tree[key])
    winner = f'"winner": "{rng.choice(("A", "B", "tie"))}"'
    return text.replace(inner, rng.choice(("{" + winner + ", " + inner[1:], inner[:-1] + ", " + winner + "}")))


def other_type(rng: random.Random, tree: Tree) -> str:
    key, value = rng.choice(KEYS), rng.choice(OTHER_TYPES)
    changed = {**tree[key], rng.choice(("winner", "reason")): value}
    return text_of({**tree, key: rng.choice((changed, value, tree[key]["winner"]))}, rng)


def other_words(rng: random.Random, tree: Tree) -> str:
    key = rng.choice(KEYS)
    return text_of({**tree, key: {**tree[key], "winner": rng.choice(OTHER_WORDS)}}, rng)


def other_winner(rng: random.Random, tree: Tree) -> str:
    key = rng.choice(KEYS)
    return text_of({**tree, key: {**tree[key], "winner": rng.choice(("A", "B", "tie"))}}, rng)


def reasons(rng: random.Random, tree: Tree) -> str:
    key = rng.choice(KEYS)
    if rng.random() < 0.3:
        return text_of({**tree, key: {"winner": tree[key]["winner"]}}, rng)
    reason = rng.choice(("", "  ", "\n", "\u3000", ".", "\ud800", "half \udc00 a sign", "😀 A", "\\", '"'))
    text = json.dumps({**tree, key: {**tree[key], "reason": reason}})
    return text.replace("\\ud83d\\ude00", "😀") if rng.random() < 0.5 else text


def not_json(rng: random.Random, tree: Tree) -> str:
    text, key = json.dumps(tree), rng.choice(KEYS)
    inner, constant = json.dumps(tree[key]), rng.choice(("NaN", "Infinity", "-Infinity", "undefined", "A", "1" * 5000))
    return rng.choice(
        (
            text.replace(inner, constant),
            text.replace(inner, inner[:-1] + ', "score": ' + constant + "}"),
            text.replace(f'"winner": "{tree[key]["winner"]}"', f'"winner": {constant}'),
            text.replace('"', "'"),
            text[:-1] + ",}",
            text.replace(inner, inner + " /* sure */"),
            text.replace('"winner"', "winner"),
        )
    )


def two_objects(rng: random.Random, tree: Tree) -> str:
    second = json.dumps(valid(rng))
    return rng.choice(("{}{}", "{}\n{}", "{}, {}", "[{}, {}]", "{}\n\nor else:\n\n{}")).replace(
        "{}", json.dumps(tree), 1
    ).replace("{}", second, 1)  # fmt: skip


def nested(rng: random.Random, tree: Tree) -> str:
    key, depth = rng.choice(KEYS), rng.choice((1, 3, 500, 100_000))
    return rng.choice(
        (
            text_of({"verdicts": tree}, rng),
            text_of([tree], rng),
            text_of(json.dumps(tree), rng),
            text_of({**tree, key: {key: tree[key]}}, rng),
            text_of({**tree, key: {**tree[key], "winner": {"winner": "A"}}}, rng),
            json.dumps(tree).replace(json.dumps(tree[key]), "[" * depth + "]" * depth),
            "[" * depth,
        )
    )


def same_said_otherwise(rng: random.Random, tree: Tree) -> str:
    """The same verdict in other JSON: escapes, white space, the reason before the winner."""
    turned = {k: dict(reversed(list(v.items()))) if rng.random() < 0.5 else v for k, v in tree.items()}
    text = text_of(turned, rng)
    if rng.random() < 0.5:
        text = text.replace('"A"', '"\\u0041"').replace('"empathy"', '"\\u0065mpathy"')
    space = rng.choice(("", "\n", "  ", "\t", "\r\n", "\xa0", "\u2003", "\v"))
    return space + text.replace(", ", "," + space) + space


MUTATIONS: tuple[Mutation, ...] = (
    *(cut, one_character, look_alike, prose, fence, renamed_key, swapped_values, missing_or_extra, duplicated_key),
    *(other_type, other_words, other_winner, reasons, not_json, two_objects, nested, same_said_otherwise),
)


def mutated(n: int, seed: int) -> Iterator[tuple[str, str]]:
    """(kind, text), every kind in turn."""
    rng = random.Random(seed)
    for i in range(n):
        mutation = MUTATIONS[i % len(MUTATIONS)]
        yield mutation.__name__, mutation(rng, valid(rng))


# --- the oracle: a grammar of its own over the text, no JSON library --------------------------------

SPACE = r"[ \t\r\n]*"
STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
FIELD = rf"{SPACE}({STRING}){SPACE}:{SPACE}({STRING}){SPACE}"
ENTRY = rf"{SPACE}({STRING}){SPACE}:{SPACE}\{{{FIELD},{FIELD}\}}{SPACE}"
BARE_ENTRY = re.sub(r"\((?!\?)", "(?:", ENTRY)
WHOLE = re.compile(rf"{SPACE}\{{{BARE_ENTRY}(?:,{BARE_ENTRY})*\}}{SPACE}")
ENTRIES = re.compile(ENTRY)
PLAIN = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def holds(text: str) -> dict[str, tuple[str, str]] | None:
    """The winner and the reason of each key that the text states, or None where it states no such verdict."""
    body = _unfenced(text)
    if body is None or not WHOLE.fullmatch(body):
        return None
    found: dict[str, tuple[str, str]] = {}
    for match in ENTRIES.finditer(body):
        key, *fields = (_said(s) for s in match.groups())
        of = dict(zip(fields[::2], fields[1::2], strict=True))
        if key is None or key in found or set(of) != {"winner", "reason"}:
            return None
        winner, reason = of["winner"], of["reason"]
        if winner not in ("A", "B", "tie") or reason is None or not re.search(r"\S", reason):
            return None
        found[key] = winner, reason.strip()
    return found if sorted(found) == sorted(KEYS) else None


def _unfenced(text: str) -> str | None:
    text = re.sub(rf"\A{SPACE}|{SPACE}\Z", "", text)
    if not text.startswith("```"):
        return text
    first, *middle, last = text.split("\n") if text.count("\n") > 1 else ("", "", "")
    if re.fullmatch(r"```(json)?[ \t]*\r?", first) and re.fullmatch(r"[ \t]*```", last):
        return "\n".join(middle)
    return None


def _said(quoted: str) -> str | None:
    """What a JSON string says; None for half of a character."""

    def one(found: re.Match[str]) -> str:
        code = found[1]
        return chr(int(code[1:], 16)) if code[0] == "u" else PLAIN.get(code, code)

    text = re.sub(r"\\(u[0-9a-fA-F]{4}|.)", one, quoted[1:-1], flags=re.DOTALL)
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None
