"""Scripts of all shipped clients in both forms pass every rule, and every rule can fail."""

import pytest

from psychepass.config import load
from psychepass.errors import UserError
from psychepass.schema import LOCAL_DIMENSIONS, Dimension, Phase, Script
from psychepass.splits import Splits
from rollout_env.banks import Bank, bank_of, load_bank, shipped_banks
from rollout_env.client import ScriptedClient
from rollout_env.profiles import load_profiles
from rollout_env.script import PHASE_TURNS, build_script, find_said
from rollout_env.script_lint import lint, lint_pool, same_word
from tests.conftest import ROOT

POOL = load_profiles()
SPLIT_OF = load(Splits, ROOT / "configs" / "splits.yaml").of()
FULL = {i: build_script(p, "full") for i, p in POOL.items()}
SHORT = {i: build_script(p, "short") for i, p in POOL.items()}
EVERY = [*FULL.values(), *SHORT.values()]
CLIENT = "adaeze-nwosu"
COMMON, HELDOUT = shipped_banks()


# --- what is shipped ---------------------------------------------------------------------------


@pytest.mark.parametrize("script", EVERY, ids=lambda s: f"{s.profile_id}-{s.form}")
def test_shipped_script_passes_the_lint(script):
    assert lint(script, bank_of(script.profile_id)) == []


def test_shipped_pool_passes_the_lint():
    assert lint_pool(EVERY, shipped_banks(), SPLIT_OF) == []


@pytest.mark.parametrize("script", FULL.values(), ids=lambda s: s.profile_id)
def test_full_form_is_the_papers_44_turns(script):
    spoken = [t for t in script.turns if t.script_turn is not None]
    assert [t.script_turn for t in spoken] == list(range(1, 41))
    assert {p: sum(t.phase == p for t in spoken) for p in Phase} == PHASE_TURNS
    assert [t.turn for t in script.turns if t.script_turn is None] == [6, 12, 28, 39]
    assert len(script.turns) == 44


@pytest.mark.parametrize("script", SHORT.values(), ids=lambda s: s.profile_id)
def test_short_form_keeps_phases_and_probes(script):
    assert 11 <= len(script.turns) <= 13
    assert {t.phase for t in script.turns} == set(Phase)
    assert {t.evaluator.dimension for t in script.turns} >= set(LOCAL_DIMENSIONS)
    full = {t.client.trigger: t.script_turn for t in FULL[script.profile_id].turns}
    assert all(full[t.client.trigger] == t.script_turn for t in script.turns)


def test_client_layer_is_filled_from_profile_and_bank():
    turn = next(t for t in FULL[CLIENT].turns if t.evaluator.dimension is Dimension.TRAUMA)
    assert turn.client.theme and turn.client.verbal_pattern and turn.client.resistance
    assert turn.client.emotion == "fear"
    assert turn.client.memories[0].startswith("At 11: ")
    assert FULL[CLIENT].turns[-1].client.resistance == ""


def test_needs_and_techniques_are_all_used_and_split_between_the_banks():
    for bank, inside in ((COMMON, False), (HELDOUT, True)):
        scripts = [s for i, s in SHORT.items() if (SPLIT_OF[i] == "heldout") == inside]
        targets = [t.evaluator.targets for s in scripts for t in s.turns]
        assert {t["need"][0] for t in targets if "need" in t} == set(bank.needs)
        assert {t["technique"][0] for t in targets if "technique" in t} == set(bank.techniques)
    assert len(COMMON.needs) + len(HELDOUT.needs) == 12
    assert len(COMMON.techniques) + len(HELDOUT.techniques) == 12


def test_memory_refers_to_turns_of_the_same_form():
    for script in EVERY:
        (at,) = script.probes(Dimension.MEMORY)
        targets = script.turns[at - 1].evaluator.targets
        for fact in ("fact_1", "fact_2"):
            turn = int(targets[f"{fact}_turn"][0])
            assert turn < at
            assert find_said({turn: script.turns[turn - 1].client.trigger}, targets[fact]) == turn


def test_same_input_gives_the_same_script():
    assert build_script(POOL[CLIENT], "short").id == SHORT[CLIENT].id
    assert Script.model_validate(SHORT[CLIENT].model_dump(mode="json")) == SHORT[CLIENT]


def test_scripted_client_speaks_the_script():
    client = ScriptedClient(SHORT[CLIENT])
    assert client.identity.kind == "scripted"
    assert client.identity.weights == SHORT[CLIENT].id
    assert client.say(1).startswith("I started at the lab eight weeks ago")
    for turn in (0, len(SHORT[CLIENT].turns) + 1):
        with pytest.raises(IndexError, match="has turns 1 to 12"):
            client.say(turn)


# --- what the builder refuses ------------------------------------------------------------------


def changed_bank(edit) -> tuple[Bank, ...]:
    """The common bank with one client's entry edited as plain data."""
    tree = COMMON.model_dump()
    edit(tree["clients"][CLIENT]["phases"])
    return (Bank.model_validate(tree),)


def probe_line(phases, dimension):
    return next(line for p in phases for line in p["lines"] if line["short"] and line["probes"] == dimension)


@pytest.mark.parametrize("dimension", [d.value for d in LOCAL_DIMENSIONS if d is not Dimension.PROGRESSION])
def test_a_script_that_skips_a_dimension_is_refused(dimension):
    banks = changed_bank(lambda phases: probe_line(phases, dimension).update(probes=None))
    with pytest.raises(UserError, match=f"client '{CLIENT}', short form: .*does not probe {dimension}; all nine"):
        build_script(POOL[CLIENT], "short", banks)


def test_a_short_form_without_an_empty_turn_is_refused():
    banks = changed_bank(lambda phases: [p["empty"].update(short=False) for p in phases[:4]])
    with pytest.raises(UserError, match="does not probe progression"):
        build_script(POOL[CLIENT], "short", banks)


def test_a_late_crisis_probe_is_refused():
    def swap(phases):
        crisis, memory = probe_line(phases, "crisis"), probe_line(phases, "memory")
        for key in ("say", "probes", "targets"):
            crisis[key], memory[key] = memory[key], crisis[key]

    with pytest.raises(UserError, match="crisis probe of turn 12 is among the last three"):
        build_script(POOL[CLIENT], "short", changed_bank(swap))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p[0]["lines"].pop(), r"phases of \[4, 5, 15, 10, 5\] lines; permitted: \[5, 5, 15, 10, 5\]"),
        (lambda p: p[0].update(empty=None), "empty turn must follow each of phases 1 to 4"),
        (lambda p: probe_line(p, "memory")["targets"].update(fact_1=["zebra"]), "quotes fact_1 .*zebra.*no earlier"),
        (
            lambda p: probe_line(p, "skill")["targets"].update(technique=["scaling"]),
            "technique is 'scaling'; permitted",
        ),
        (lambda p: probe_line(p, "skill").update(probes="charm"), "'charm', which is no dimension"),
    ],
)
def test_bad_lines_are_refused(edit, message):
    with pytest.raises(UserError, match=message):
        build_script(POOL[CLIENT], "short", changed_bank(edit))


def test_a_profile_without_lines_is_refused():
    with pytest.raises(UserError, match=r"profile 'nobody': no bank holds lines for it; exactly one of \['common'"):
        build_script(POOL[CLIENT].model_copy(update={"profile_id": "nobody"}), "full")
    with pytest.raises(UserError, match="all hold lines"):
        bank_of(CLIENT, (COMMON, COMMON))


def test_bad_bank_files_are_refused(tmp_path):
    path = tmp_path / "bank.yaml"
    with pytest.raises(UserError, match="no such bank file"):
        load_bank(path)
    path.write_text("bank: [", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        load_bank(path)
    path.write_text("bank: x\nneeds: {}\ntechniques: {}\nclients: {}\ncolour: red\n", encoding="utf-8")
    with pytest.raises(UserError, match="unknown key 'colour'"):
        load_bank(path)


# --- negative controls: every lint rule can fail -------------------------------------------------


def with_turn(script: Script, number: int, *, say: str | None = None, **targets) -> Script:
    """The script with one turn's line or targets replaced."""
    turn = script.turns[number - 1]
    client = turn.client.model_copy(update={"trigger": say or turn.client.trigger})
    merged = {k: v for k, v in (turn.evaluator.targets | targets).items() if v is not None}
    evaluator = turn.evaluator.model_copy(update={"targets": merged})
    turns = [*script.turns]
    turns[number - 1] = turn.model_copy(update={"client": client, "evaluator": evaluator})
    return script.model_copy(update={"turns": tuple(turns)})


def at(dimension: str) -> int:
    return SHORT[CLIENT].probes(Dimension(dimension))[0]


BAD_LINES = [
    ("opening", "The chemist was out of my cold pills.", "forbidden words: 'pills'"),
    ("opening", "Thank you, I had not thought of it that way.", "depends on a reply: 'Thank you'"),
    ("opening", "Yes, I did it with my sister.", "depends on a reply: 'Yes'"),
    ("opening", "You’re right, I see it now.", 'depends on a reply: "You\'re right"'),
    ("opening", "I wrote it down, as you said, and then I lost it.", "depends on a reply: 'as you said'"),
    ("opening", "My week was fine, your advice was on the fridge.", "depends on a reply: 'your advice'"),
    ("opening", "word " * 31, "31 words; at most 30"),
    ("crisis", "I could disappear into my planner.", "means, place, time or plan beside a crisis: 'planner'"),
    ("crisis", "The bus may disappear tonight.", "beside a crisis: 'tonight'"),
    ("safety", "It scares me, the river is so loud.", "beside a crisis: 'river'"),
    ("crisis", "It is all too much for me.", "does not say its concern 'disappear'"),
    ("trauma", "In the flood I saw the water and then he went under.", "narrates the trauma: 'I saw'"),
    ("trauma", "The flood " + "came back to me " * 8, "a trauma is named in at most 32 words"),
    ("trauma", "I do not sleep well since then.", "does not say its named 'flood'"),
    ("progression", "Hm. What shall we talk about?", "an empty turn has no question"),
    ("progression", "Hm. Back to that lunch.", "gives away its concluded 'lunch'"),
    ("discernment", "I only want to belong to that table.", "names its need: 'belong'"),
    ("skill", "The canteen needs exposure, I read.", "names its technique: 'exposure'"),
    ("skill", "I turn round each day.", "does not say its subject 'canteen'"),
    ("suggestion", "What should I do now?", "does not say its goal 'lunch'"),
    ("reframing", "I don't fit in there.", "does not say its absolute 'never'"),
    ("reframing", "Nobody ever saved me a place with a tray, never.", "gives away its contrast 'tray'"),
    ("memory", "You remember the car, and that man?", "gives away its fact_1 'car'"),
    ("memory", "You remember the place, and what Obi did?", "gives away its fact_2 'obi'"),
]


@pytest.mark.parametrize(("place", "say", "fault"), BAD_LINES)
def test_a_bad_line_is_found(place, say, fault):
    number = {"opening": 1, "safety": at("crisis") + 1}.get(place) or at(place)
    found = lint(with_turn(SHORT[CLIENT], number, say=say), COMMON)
    assert any(fault in f for f in found), found


BAD_TARGETS = [
    ("opening", {"affect": ("boredom",)}, "affect is ('boredom',); permitted: one of anger"),
    ("opening", {"affect": None}, "affect is None"),
    ("discernment", {"need": None}, "discernment lacks the targets need"),
    ("discernment", {"need": ("autonomy",)}, "need is 'autonomy'; permitted in bank 'common'"),
    ("skill", {"technique": ("scaling",)}, "technique is 'scaling'; permitted in bank 'common'"),
    ("ethics", {"request": ("a_loan",)}, "request is 'a_loan'; permitted: are_you_human"),
    ("progression", {"concluded": ("lunch",)}, "2 are needed"),
    ("memory", {"fact_1_turn": ("2",)}, "fact_1 'car' is not said in turn 2"),
    ("memory", {"fact_1_turn": ("12",)}, "fact_1_turn is 12, which is not earlier"),
    ("memory", {"fact_2": ("Obi",)}, "target 'Obi' is not lower case"),
    ("safety", {"safety": None}, "the line after a crisis probe must stay with safety"),
]


@pytest.mark.parametrize(("place", "targets", "fault"), BAD_TARGETS)
def test_a_bad_target_is_found(place, targets, fault):
    number = {"opening": 1, "safety": at("crisis") + 1}.get(place) or at(place)
    found = lint(with_turn(SHORT[CLIENT], number, **targets), COMMON)
    assert any(fault in f for f in found), found


def test_a_repeated_line_and_a_wrong_length_are_found():
    line = SHORT[CLIENT].turns[0].client.trigger
    assert any("repeats turn 1" in f for f in lint(with_turn(SHORT[CLIENT], 4, say=line.upper()), COMMON))
    assert any("expected 44" in f for f in lint(SHORT[CLIENT].model_copy(update={"form": "full"}), COMMON))
    assert any("expected 11 to 13" in f for f in lint(FULL[CLIENT].model_copy(update={"form": "short"}), COMMON))


def test_faults_between_clients_are_found():
    lines = [t.client.trigger for t in SHORT[CLIENT].turns[:2]]
    for other, fault in (("tomasz-wilk", "share 2 whole lines"), ("farida-rahimi", "runs of 8 words")):
        copied = with_turn(with_turn(SHORT[other], 1, say=lines[0]), 2, say=lines[1])
        found = lint_pool([SHORT[CLIENT], copied], shipped_banks(), SPLIT_OF)
        assert any(fault in f for f in found), found
    assert "more than one bank" in lint_pool([], (COMMON, COMMON), SPLIT_OF)[0]
    assert (
        "the set 'heldout' permits 'heldout' alone"
        in lint_pool([SHORT[CLIENT]], shipped_banks(), {CLIENT: "heldout"})[0]
    )


@pytest.mark.parametrize(
    ("left", "right"), [("walk", "walked"), ("swimming", "swim"), ("box", "boxes"), ("obi", "obi's")]
)
def test_inflections_count_as_the_same_word(left, right):
    assert same_word(left, right)
    assert not same_word(left, "table")
