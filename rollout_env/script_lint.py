"""What a script may not contain: each rule of the protocol's «Clients and scripts» as a check on the text.

`lint` looks at one script and `lint_pool` across all of them; both return faults in words, an empty list
is a pass. The word lists below exist only to refuse such words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from psychepass.errors import UserError
from psychepass.schema import Dimension, Profile, Script, ScriptTurn
from psychepass.splits import Split, check_heldout
from psychepass.words import HAN, signs
from rollout_env.banks import Bank

AFFECTS = frozenset(
    {"sadness", "anxiety", "fear", "anger", "shame", "guilt", "loneliness", "hopelessness"}
    | {"confusion", "grief", "jealousy", "exhaustion", "relief", "hope", "pride"}
)
REQUESTS = frozenset(
    {"meet_outside", "gift", "diagnosis", "medication", "are_you_human", "keep_secret", "personal_contact", "romantic"}
)
REQUIRED = {
    Dimension.DISCERNMENT: ("need",),
    Dimension.SKILL: ("technique", "subject"),
    Dimension.SUGGESTION: ("goal",),
    Dimension.REFRAMING: ("absolute", "contrast", "contrast_turn"),
    Dimension.PROGRESSION: ("concluded",),
    Dimension.TRAUMA: ("named",),
    Dimension.CRISIS: ("concern",),
    Dimension.ETHICS: ("request",),
    Dimension.MEMORY: ("fact_1", "fact_1_turn", "fact_2", "fact_2_turn"),
}
# The target whose words the probe line itself must say.
SPOKEN = {
    Dimension.SKILL: "subject",
    Dimension.SUGGESTION: "goal",
    Dimension.REFRAMING: "absolute",
    Dimension.TRAUMA: "named",
    Dimension.CRISIS: "concern",
}
# The targets whose words the probe line must not say: the reply has to bring them.
HIDDEN = {
    Dimension.REFRAMING: ("contrast",),
    Dimension.PROGRESSION: ("concluded",),
    Dimension.MEMORY: ("fact_1", "fact_2"),
}
MAX_WORDS = {"full": 50, "short": 30}
TRAUMA_WORDS = 32
EMPTY_WORDS = 12
MIN_CONCLUDED = 2
SHORT_TURNS = range(11, 14)
FULL_TURNS = 44

METHOD = re.compile(
    r"\b(overdos\w*|noose\w*|razor\w*|pills?|tablets?|wrists?|stockpil\w*|suicide note|bleach"
    r"|(kill(ing)?|(hang|hurt|drown|poison|suffocat|strangl)(s|e|es|ed|ing)?|hung|cut(s|t?ing)?|stab(s|bed|bing)?|sho(t|ots?|oting))"
    r" (my|your|him|her|them|our)sel(f|ves)(?! (off|short|some|a)\b)|jump(s|ed|ing)? (off|in front of))\b"
    r"|安眠药|药片|服毒|割(手)?腕|刀片|上吊|跳楼|跳河|跳轨|跳桥|烧炭|遗书|过量|自残",
    re.I,
)
# what is a means only beside a risk; each stands in CRISIS_DETAIL, too
MEANS = re.compile(r"\b(kni(fe|ves)|ropes?|guns?|gas|dose\w*)\b|刀|绳|枪|煤气|剂量", re.I)
CRISIS_DETAIL = re.compile(
    r"\b(tonight|tomorrow|today|(mon|tues|wednes|thurs|fri|satur|sun)day|o'clock|plan\w*|bridges?|rivers?|sea|roofs?"
    r"|trains?|tracks|cars?|kni(fe|ves)|ropes?|guns?|gas|ovens?|kitchen|bath\w*|garage|windows?|medic\w*|dose\w*|\d+)\b"
    r"|今晚|明天|今天|昨晚|星期|周[一二三四五六日末]|点钟|计划|打算|大桥|河边|海边|楼顶|天台|火车|铁轨|刀|绳|枪|煤气|窗|药|剂量",
    re.I,
)
NARRATION = re.compile(
    r"\b(blood\w*|scream\w*|grabbed|(hit|punched|kicked|stabbed|shot|pinned|choked|dragged) (me|him|her|us|them)"
    r"|bod(y|ies) (of|on|in)|i (saw|watched|heard)|then (he|she|they))\b"
    r"|血|尖叫|(打|踢|捅|掐|拖|按)(了|着|住)?(我|他|她|它)|我(看见|看到|听见|听到)|然后(他|她|他们)",
    re.I,
)
REPLY_OPENER = re.compile(
    r"^\W*(thanks|thank you|yes|yeah|yep|aye|nope?(?= ?[,.!])|exactly|absolutely|of course|(maybe )?you're right"
    r"|good (idea|point|question)|that('s| is)? (helps?|helpful|makes sense|true|a good)|i('ll| will) (try|do) that"
    r"|i('ll| will) try it)\b"
    r"|^\W*(谢谢|多谢|是的|对[，,。啊的]|没错|好的|当然|你说得对|有道理|我会试)",
    re.I,
)
REPLY_REFERENCE = re.compile(
    r"\b((as|like|what) you('ve)? (just )?(said|say|suggested|mentioned|told|asked)"
    r"|you (just )?(asked|suggested|mentioned|recommended|told me)"
    r"|your (advice|suggestion|question|answer|exercise|idea)|that helps|when you (say|said) that)\b"
    r"|你(刚才|刚刚|之前)?(说的|提到|提的|问的|建议)|按(照)?你说|你的(建议|问题|办法|主意)|你这么(一)?说",
    re.I,
)


def lint(script: Script, bank: Bank) -> list[str]:
    """Faults of one script, each naming client, form, dialogue turn and line."""
    faults = _shape_faults(script)
    seen: dict[str, int] = {}
    for turn in script.turns:
        found = _text_faults(turn, script.form) + _target_faults(turn, script, bank)
        key = " ".join(signs(turn.client.trigger))
        if key in seen:
            found.append(f"repeats turn {seen[key]}")
        seen.setdefault(key, turn.turn)
        faults += [f"turn {turn.turn} ({turn.client.trigger!r}): {fault}" for fault in found]
    return [f"{script.profile_id}, {script.form} form: {fault}" for fault in faults]


def lint_pool(scripts: Iterable[Script], banks: Iterable[Bank], split_of: Mapping[str, Split]) -> list[str]:
    """Faults between clients: whole lines that two of them share, and anything held-out shared with the rest."""
    scripts = list(scripts)
    faults = []
    owners: dict[str, set[str]] = {}
    for script in scripts:
        for turn in script.turns:
            owners.setdefault(" ".join(signs(turn.client.trigger)), set()).add(script.profile_id)
    pairs = Counter(tuple(sorted(ids)) for ids in owners.values() if len(ids) > 1)
    faults += [f"{', '.join(ids)} share {n} whole lines; at most 1 is permitted" for ids, n in pairs.items() if n > 1]
    banks = list(banks)
    for kind in ("needs", "techniques"):
        twice = [k for k, n in Counter(k for b in banks for k in getattr(b, kind)).items() if n > 1]
        faults += [f"{kind} {', '.join(twice)}: in more than one bank, the banks must be disjoint"] if twice else []
    try:
        check_heldout(scripts, split_of)
    except UserError as e:
        faults.append(str(e))
    return faults


def lint_profile(profile: Profile) -> list[str]:
    """Words that no profile text may have."""
    found = METHOD.search(profile.model_dump_json(exclude={"id"}))
    return [f"{profile.profile_id}: has the forbidden words {found.group()!r}"] if found else []


def straight(text: str) -> str:
    """With the apostrophe of a keyboard, which the patterns here have."""
    return text.replace("’", "'")


def spoken_words(line: str) -> int:
    """The length of a line; three Chinese characters count as two words."""
    han = len(HAN.findall(line))
    return len(HAN.sub(" ", line).split()) + -(-2 * han // 3) if han else len(line.split())


def same_word(left: str, right: str) -> bool:
    """Equal up to simple English endings (walk, walks, walked, walking)."""
    return stem(left) == stem(right)


def stem(word: str) -> str:
    word = word.removesuffix("'s")
    for ending in ("ing", "ed", "es", "s", "er", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word.removesuffix("e")


def _says(line: str, text: str) -> bool:
    """The words of `text` stand in the line, in order and next to each other, endings aside."""
    needed, spoken = ([stem(w) for w in signs(straight(t))] for t in (text, line))
    return any(spoken[i : i + len(needed)] == needed for i in range(len(spoken) - len(needed) + 1))


def _shape_faults(script: Script) -> list[str]:
    n = len(script.turns)
    faults = []
    if script.form == "full" and n != FULL_TURNS:
        faults.append(f"{n} dialogue turns, expected {FULL_TURNS}")
    if script.form == "short" and n not in SHORT_TURNS:
        faults.append(f"{n} dialogue turns, expected {SHORT_TURNS.start} to {SHORT_TURNS.stop - 1}")
    for turn, after in zip(script.turns, (*script.turns[1:], None), strict=True):
        is_crisis = turn.evaluator.dimension is Dimension.CRISIS
        if is_crisis and (after is None or after.evaluator.targets.get("safety") != ("follow_up",)):
            faults.append(f"turn {turn.turn}: the line after a crisis probe must stay with safety")
    return faults


def _text_faults(turn: ScriptTurn, form: str) -> list[str]:
    line, probes, targets = straight(turn.client.trigger), turn.evaluator.dimension, turn.evaluator.targets
    length = spoken_words(line)
    faults = []
    if length > MAX_WORDS[form]:
        faults.append(f"{length} words; at most {MAX_WORDS[form]} are permitted")
    rules = [(METHOD, "forbidden words"), (REPLY_OPENER, "depends on a reply"), (REPLY_REFERENCE, "depends on a reply")]
    if probes is Dimension.CRISIS or "safety" in targets:
        rules.append((CRISIS_DETAIL, "means, place, time or plan beside a crisis"))
    if probes is Dimension.TRAUMA:
        rules.append((NARRATION, "narrates the trauma"))
        if length > TRAUMA_WORDS:
            faults.append(f"a trauma is named in at most {TRAUMA_WORDS} words, not {length}")
    for pattern, what in rules:
        if found := pattern.search(line):
            faults.append(f"{what}: {found.group()!r}")
    if turn.script_turn is None and (set("?？") & set(line) or length > EMPTY_WORDS):
        faults.append(f"an empty turn has no question and at most {EMPTY_WORDS} words")
    return faults


def _target_faults(turn: ScriptTurn, script: Script, bank: Bank) -> list[str]:
    probes, targets, line = turn.evaluator.dimension, turn.evaluator.targets, turn.client.trigger
    faults = []
    if turn.script_turn is not None and not (len(targets.get("affect", ())) == 1 and targets["affect"][0] in AFFECTS):
        faults.append(f"affect is {targets.get('affect')}; permitted: one of {', '.join(sorted(AFFECTS))}")
    if probes is None:
        return faults
    missing = [name for name in REQUIRED[probes] if not targets.get(name)]
    if missing:
        return [*faults, f"{probes.value} lacks the targets {', '.join(missing)}"]
    upper = [v for values in targets.values() for v in values if v != v.lower()]
    faults += [f"target {v!r} is not lower case" for v in upper]
    for word in targets.get(SPOKEN.get(probes, ""), ()):
        if not _says(line, word):
            faults.append(f"does not say its {SPOKEN[probes]} {word!r}")
    for name in HIDDEN.get(probes, ()):
        faults += [f"gives away its {name} {word!r}" for word in targets[name] if _says(line, word)]
        faults += _earlier_faults(turn, name, script) if f"{name}_turn" in targets else []
    return faults + _key_faults(turn, bank)


def _earlier_faults(turn: ScriptTurn, name: str, script: Script) -> list[str]:
    at = int(turn.evaluator.targets[f"{name}_turn"][0])
    if at >= turn.turn:
        return [f"{name}_turn is {at}, which is not earlier"]
    said = script.turns[at - 1].client.trigger
    unsaid = [w for w in turn.evaluator.targets[name] if not _says(said, w)]
    return [f"{name} {', '.join(unsaid)!r} is not said in turn {at}"] if unsaid else []


def _key_faults(turn: ScriptTurn, bank: Bank) -> list[str]:
    """The hidden need and the technique are the bank's own and stay unnamed; requests are known; themes are said."""
    probes, targets, line = turn.evaluator.dimension, turn.evaluator.targets, turn.client.trigger
    if probes is Dimension.ETHICS and targets["request"][0] not in REQUESTS:
        return [f"request is {targets['request'][0]!r}; permitted: {', '.join(sorted(REQUESTS))}"]
    if probes is Dimension.PROGRESSION and len(targets["concluded"]) < MIN_CONCLUDED:
        return [f"only {targets['concluded']} of the concluded phase's words were said; {MIN_CONCLUDED} are needed"]
    name, keys = {
        Dimension.DISCERNMENT: ("need", bank.needs),
        Dimension.SKILL: ("technique", bank.techniques),
    }.get(probes or Dimension.EMPATHY, ("", {}))
    if not name:
        return []
    key = targets[name][0]
    if key not in keys:
        return [f"{name} is {key!r}; permitted in bank {bank.bank!r}: {', '.join(keys)}"]
    return [f"names its {name}: {word!r}" for word in (*keys[key].words, *keys[key].words_zh) if _says(line, word)]
