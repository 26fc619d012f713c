"""Seeds from text files, imported sets (on the real ones where they are) and whole profiles."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from psychepass import records
from psychepass.config import parse
from psychepass.errors import UserError
from rollout_env.ages import UNCLEAR_AGE
from rollout_env.profile_draft import MINOR, MINOR_ROMANTIC, refusal
from rollout_env.profile_records import Origin
from rollout_env.profile_sources import RawSeed, SourceEntry, imported_sets, pick, read_seeds
from rollout_env.profiles import load_profiles

# rows, minors (by age or age group), rows with an age in years, rows with a gender, rows with a name
SETS = {
    "patienthub": ("patienthub", 116, 8, 25, 66, 61, "en"),
    "vera_mh": ("vera_mh/personas.tsv", 10, 0, 10, 10, 10, "en"),
    "psychagent": ("psychagent_profiles/cbt_profiles.jsonl", 196, 24, 195, 195, 196, "zh"),
    "cactus": ("cactus_clients/evaluation.json", 450, 54, 450, 450, 450, "en"),
}


def entry(kind: str, path: Path | str, **more: Any) -> SourceEntry:
    return parse(SourceEntry, {"kind": kind, "path": str(path), "licence": "own"} | more, "here")


@pytest.mark.parametrize("kind", SETS)
def test_each_imported_set_yields_all_its_rows(shared_dir: Path, kind: str):
    where, rows, minors, ages, genders, names, language = SETS[kind]
    seeds = read_seeds(entry(kind, shared_dir / "data" / where))
    assert len(seeds) == rows and {s.language for s in seeds} == {language}
    assert sum(s.is_child or (s.age is not None and s.age < 18) for s in seeds) == minors
    assert sum(refusal(s, allow_minors=False) == "" for s in seeds) <= rows - minors
    assert sum(s.age is not None for s in seeds) == ages and sum(s.gender is not None for s in seeds) == genders
    assert sum(bool(s.names) for s in seeds) == names
    assert min(len(s.text) for s in seeds) > 100 and {s.origin.licence for s in seeds} == {"own"}
    places = Counter((s.origin.file, s.origin.row) for s in seeds)
    assert max(places.values()) == 1


def test_the_folder_of_patienthub_has_a_seed_of_each_of_its_ten_formats(shared_dir: Path):
    files = {s.origin.file for s in read_seeds(entry("patienthub", shared_dir / "data" / "patienthub"))}
    assert len(files) == 10
    assert files == {f"characters_{name}.json" for name in imported_sets().patienthub}


def test_an_imported_row_by_hand(tmp_path: Path):
    row = {"name": "Ada Byrd", "age": 24, "gender": "Female", "life_history": ["moved", "lost a cat"]}
    row |= {"typical_topics": [], "key_negative_symptoms": [{"name": "Sleep", "severity": 1}]}
    file = tmp_path / "characters_talkDep.json"
    file.write_text(json.dumps([row]))
    (seed,) = read_seeds(entry("patienthub", file))
    assert seed.text == "key_negative_symptoms: Sleep; 1\nlife_history: moved; lost a cat"
    assert (seed.age, seed.gender, seed.names) == (24, "female", ("Ada Byrd",))
    assert seed.origin == Origin(kind="patienthub", file=file.name, row=1, licence="own")
    assert pick({"a": {"b": ["x", None, "unknown"]}}, "a.b") == "x" and pick({"a": 1}, "a.b") == ""


def test_text_seeds_stand_between_empty_lines_or_one_a_line(tmp_path: Path):
    file = tmp_path / "seeds.txt"
    file.write_text("One\ngoes on.\n\n  \nTwo.\n")
    assert [s.text for s in read_seeds(entry("text", file))] == ["One goes on.", "Two."]
    file.write_text("\ufeffOne.\nTwo.\n\n", encoding="utf-8")
    assert [(s.origin.row, s.text) for s in read_seeds(entry("text", file))] == [(1, "One."), (2, "Two.")]
    file.write_text("我很累。\n", encoding="utf-8")
    (seed,) = read_seeds(entry("text", file, language="zh"))
    assert seed.language == "zh" and seed.text == "我很累。"


def test_whole_profiles_are_seeds_with_a_profile(tmp_path: Path):
    pool = list(load_profiles().values())[:3]
    records.write(tmp_path / "p.jsonl", pool)
    assert [s.profile for s in read_seeds(entry("profiles", tmp_path / "p.jsonl"))] == pool


@pytest.mark.parametrize(
    ("name", "content", "kind", "told"),
    [
        ("none.txt", None, "text", "none.txt: no such file; kind text reads one"),
        ("empty.txt", "\n \n", "text", "empty.txt: holds no seed"),
        (
            "characters_other.json",
            "[{}]",
            "patienthub",
            "no known format of PatientHub; permitted: characters_adaptiveVP",
        ),
        ("characters_talkDep.json", "[{}]", "patienthub", "row 1: has none of the fields key_negative_symptoms, "),
        ("characters_talkDep.json", "{}", "patienthub", "holds a dict; a list of rows is needed"),
        ("cactus.json", "[3]", "cactus", "row 1: is a int; cactus has objects"),
        ("cactus.json", '[{"AI_client": {}}]', "cactus", "row 1: has no AI_client.intake_form"),
        ("cbt.jsonl", '{"a": 1}\n{', "psychagent", "cbt.jsonl: not JSON"),
        ("personas.tsv", "a\tb\n1\t2\n", "vera_mh", "row 1: has none of the fields Background, "),
        ("p.jsonl", '{"profile_id": "x"}\n', "profiles", "p.jsonl, line 1: not a valid Profile: missing key 'name'"),
    ],
)
def test_bad_sources_are_one_error_each(tmp_path: Path, name: str, content: str | None, kind: str, told: str):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as e:
        read_seeds(entry(kind, tmp_path / name))
    assert told in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "content", "kind", "told"),
    [
        (
            "personas.tsv",
            "Name\tBackground\nAda\tcaf\xe9\n",
            "vera_mh",
            "personas.tsv: not UTF-8 (invalid continuation",
        ),
        ("cactus.json", '["caf\xe9"]', "cactus", "cactus.json: not UTF-8"),
        ("cbt.jsonl", '{"a": "caf\xe9"}\n', "psychagent", "cbt.jsonl: not UTF-8"),
        ("seeds.txt", "caf\xe9\n", "text", "seeds.txt: not UTF-8"),
        ("cactus.json", "[" * 100_000, "cactus", "cactus.json: not JSON (nested too deeply)"),
        (
            "personas.tsv",
            "a\tb\n1\t" + "x" * 200_000,
            "vera_mh",
            "personas.tsv: not tab-separated values (field larger",
        ),
    ],
)
def test_bytes_that_are_no_text_and_what_is_too_deep_or_large(
    tmp_path: Path, name: str, content: str, kind: str, told: str
):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as e:
        read_seeds(entry(kind, tmp_path / name))
    assert told in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b", "\x0c"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, mark: str):
    said = f"One{mark}goes on."
    (tmp_path / "personas.tsv").write_text(f"Name\tBackground\r\nAda\t{said}\r\n", encoding="utf-8", newline="")
    assert [s.text for s in read_seeds(entry("vera_mh", tmp_path / "personas.tsv"))] == [f"Background: {said}"]
    (tmp_path / "seeds.txt").write_text(f"{said}\nTwo.\n", encoding="utf-8")
    assert [s.text for s in read_seeds(entry("text", tmp_path / "seeds.txt"))] == ["One goes on.", "Two."]
    if mark not in "\x0b\x0c":  # JSON has these two escaped
        row = {"profile": {"basic_info": {"main_problem": said}}}
        (tmp_path / "cbt.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        assert [s.text for s in read_seeds(entry("psychagent", tmp_path / "cbt.jsonl"))] == [f"main_problem: {said}"]


def test_a_language_belongs_to_plain_text_alone():
    with pytest.raises(UserError, match="language belongs to kind text; the language of cactus is known"):
        entry("cactus", "x", language="zh")


@pytest.mark.parametrize(
    ("seed", "strict", "permitted"),
    [
        ({"text": "I quarrel with my sister.", "age": 18}, "", ""),
        ({"text": "I quarrel with my sister.", "age": 15}, MINOR, ""),
        ({"text": "I quarrel with my boyfriend.", "age": 17}, MINOR, MINOR_ROMANTIC),
        ({"text": "I have a boyfriend.", "age": 30}, "", ""),
        ({"text": "Sad.", "age": 9}, "younger than 13", "younger than 13"),
        ({"text": "Sad.", "is_child": True}, MINOR, ""),
        ({"text": "Sad.", "is_unclear": True}, UNCLEAR_AGE, UNCLEAR_AGE),
        ({"text": "I'm 9 years old.", "age": 30}, "younger than 13", "younger than 13"),
        ({"text": "I'm 16 and school is too much."}, MINOR, ""),
        ({"text": "A 15-year-old student who sleeps badly."}, MINOR, ""),
        ({"text": "When I was 15 years old we moved. I am 17 kilos heavier now."}, "", ""),
        ({"text": "我今年16岁，暗恋同学。", "language": "zh"}, MINOR, MINOR_ROMANTIC),
        ({"text": "我16岁那年搬了家。", "language": "zh"}, "", ""),
    ],
)
def test_minors_are_refused_and_never_have_a_romantic_theme(seed: dict[str, Any], strict: str, permitted: str):
    origin = Origin(kind="text", file="f", row=1, licence="own")
    raw = RawSeed(**({"origin": origin, "language": "en"} | seed))
    assert (refusal(raw, allow_minors=False), refusal(raw, allow_minors=True)) == (strict, permitted)


def test_a_row_whose_age_says_no_adult_is_refused(tmp_path: Path):
    file = tmp_path / "personas.tsv"
    for age, strict, permitted in (
        ("17.0", MINOR, ""),
        ("Adolescent", MINOR, ""),
        ("9.0", "younger than 13", "younger than 13"),
        ("under 25", UNCLEAR_AGE, UNCLEAR_AGE),
        ("", "", ""),
        ("Adult", "", ""),
    ):
        file.write_text(f"Name\tAge\tBackground\nAda\t{age}\tSleeps badly.\n")
        (seed,) = read_seeds(entry("vera_mh", file))
        assert (refusal(seed, False), refusal(seed, True)) == (strict, permitted), age
