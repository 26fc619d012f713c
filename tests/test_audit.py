"""Stage `audit`: blinded sheets out, filled sheets in, and one sentence for each fault of a sheet."""

from __future__ import annotations

import csv
import io
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psychepass import cli, records
from psychepass.schema import SWAPPED, Battle, Dimension, Session, Verdict, Winner
from tests.conftest import ROOT
from tests.handmade import session_of, short_script
from tests.test_analysis import JUDGE, drawn
from tournament import audit, audit_draw, audit_sheets, run

NAMES = ("harbour-large", "harbour-small", "quarry", "quarry-hot")
REASON = "the judge preferred it for its warmth"
CONFIG = str(ROOT / "configs" / "audit.yaml")
SMALL = ["cases=3", "dimensions=4"]


def made_run(folder: Path, clients: int = 6) -> Path:
    """A run directory with a round robin in both orders and, in one session, a reply that says who speaks."""
    scripts = [short_script(f"client-{c}") for c in range(clients)]
    sessions = {}
    for s in scripts:
        for k, name in enumerate(NAMES):
            says = (
                "Quarry, at your service."
                if (s.profile_id, name) == ("client-0", "quarry")
                else "I hear you. " * (k + 1)
            )
            sessions[s.profile_id, name] = session_of(s, name, "train", says)
    battles = []
    for plain in drawn(clients, "abcd"):
        client = f"client-{plain.profile_id[1:]}"
        names = {x: NAMES["abcd".index(getattr(plain, f"contestant_{x}"))] for x in "ab"}
        ids = {f"session_{x}": sessions[client, n].id for x, n in names.items()}
        of = {f"contestant_{x}": n for x, n in names.items()}
        verdicts = {d: Verdict(winner=v.winner, reason=REASON) for d, v in plain.verdicts.items()}
        battles.append(plain.model_copy(update={"profile_id": client, "verdicts": verdicts, **ids, **of}))
    records.write(folder / "sessions.jsonl", sessions.values())
    records.write(folder / "battles.jsonl", battles)
    entered = run.Field(NAMES, {f"client-{c}": {} for c in range(clients)}, {})
    records.write_json(folder / "ratings.json", run.leaderboard(entered, list(battles), JUDGE, 0))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_run(tmp_path_factory.mktemp("audit") / "run")
    assert cli.main(["audit", CONFIG, f"run={folder}", *SMALL]) == 0
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "run")
    return tmp_path / "run"


def sheet_at(folder: Path, rater: str) -> Path:
    return folder / "audit" / "hand_out" / rater / "sheet.csv"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))


def save(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    table.writeheader()
    table.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def fill(folder: Path, rater: str, said: Callable[[str, str], Winner], delimiter: str = ",") -> None:
    """Fill a sheet; `said` gives the verdict of (case, dimension) in the key's order, written as the rater sees it."""
    key = records.read_json(folder / "audit" / "key.json")
    of = {row["item"]: row for row in key["raters"][rater]["rows"]}
    exported = audit_sheets._rows(sheet_at(folder, rater))
    rows = [dict(row) for row in exported]
    for row in rows:
        known = of[row["item"]]
        verdict = said(known["case"], known["dimension"])
        row["verdict"] = SWAPPED[verdict] if known["swapped"] else verdict
    save(sheet_at(folder, rater), rows, delimiter)


def as_the_judge(folder: Path, wrong: float = 0.0, seed: int = 0) -> Callable[[str, str], Winner]:
    key, rng = records.read_json(folder / "audit" / "key.json"), random.Random(seed)

    def said(case: str, dimension: str) -> Winner:
        verdict: Winner = key["cases"][case]["judge"][dimension]
        return rng.choice(("A", "tie", "B")) if rng.random() < wrong else verdict

    return said


def agreement(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = records.read_json(folder / "audit" / "audit.json")
    return {(r["name"], r["between"], r["measure"]): r for r in found["agreement"]}


# --- export --------------------------------------------------------------------------------------


def test_the_study_is_the_one_asked_for(exported: Path) -> None:
    key = records.read_json(exported / "audit" / "key.json")
    strata = Counter(c["stratum"] for c in key["cases"].values())
    assert strata == dict.fromkeys(audit_draw.STRATA, 3) and all(len(c["judge"]) == 4 for c in key["cases"].values())
    strong = set(key["ranking"][:2])
    for case in key["cases"].values():
        weak = sum(name not in strong for name in case["contestants"])
        assert case["stratum"] == audit_draw.STRATA[weak]
    for stratum in strata:
        of = [c for c in key["cases"].values() if c["stratum"] == stratum]
        assert len({c["client"] for c in of}) == 3  # a client a case while there are clients
        used = Counter(d for c in of for d in c["judge"])
        assert "diversity" not in used and max(used.values()) - min(used.values()) <= 1 and len(used) == 11
    assert key["matches"] == {"all": 36, "left_out_naming_a_model": 3}  # of the session that says who speaks
    for rater in ("rater1", "rater2"):
        rows = rows_of(sheet_at(exported, rater))
        assert len(rows) == 36 and len({r["item"] for r in rows}) == 36 and not any(r["verdict"] for r in rows)
    codes = [r["item"] for rater in key["raters"].values() for r in rater["rows"]]
    assert len(set(codes)) == len(codes) == 72
    swaps = {name: {r["case"]: r["swapped"] for r in of["rows"]} for name, of in key["raters"].items()}
    assert all(sum(of.values()) == 4 for of in swaps.values()) and swaps["rater1"] != swaps["rater2"]


def test_nothing_handed_out_gives_a_contestant_or_verdict_away(exported: Path) -> None:
    battles = records.read(exported / "battles.jsonl", Battle)
    sessions = records.read(exported / "sessions.jsonl", Session)
    secret = {*NAMES, "quarry", "harbour", REASON, JUDGE.name, *audit_draw.STRATA, *(s.id for s in sessions)}
    secret |= {b.id for b in battles} | {s.therapist.family for s in sessions} | {s.script_id for s in sessions}
    files = [p for p in (exported / "audit" / "hand_out").rglob("*") if p.is_file()]
    assert len(files) == 2 * (2 + 9)
    for path in files:
        shown = f"{path.relative_to(exported / 'audit' / 'hand_out')}\n{path.read_text(encoding='utf-8-sig')}"
        assert [w for w in secret if w.casefold() in shown.casefold()] == []
    key = (exported / "audit" / "key.json").read_text(encoding="utf-8")
    assert "quarry" in key and sessions[0].id[:4]  # the control: the key does name them
    # no sheet tells another's order: each page is of one rater alone
    names = [p.name for p in files if p.suffix == ".html"]
    assert len(set(names)) == len(names)


def test_a_page_shows_both_sessions_in_the_order_of_the_key(exported: Path) -> None:
    key = records.read_json(exported / "audit" / "key.json")
    sessions = {s.id: s for s in records.read(exported / "sessions.jsonl", Session)}
    for row in key["raters"]["rater1"]["rows"]:
        first, second = key["cases"][row["case"]]["sessions"]
        a, b = (second, first) if row["swapped"] else (first, second)
        text = (sheet_at(exported, "rater1").parent / row["page"]).read_text(encoding="utf-8")
        for name, session in (("A", a), ("B", b)):
            said = [line for line in text.splitlines() if f"Therapist {name}: " in line]
            assert said == [f"<p>Therapist {name}: {t.therapist}</p>" for t in sessions[session].turns]
        assert audit_sheets.criteria()[Dimension(row["dimension"])][1] in text


def test_the_same_seed_gives_the_same_sheets(exported: Path, tmp_path: Path) -> None:
    for name, seed, same in (("again", 0, True), ("other", 1, False)):
        folder = made_run(tmp_path / name)
        assert cli.main(["audit", CONFIG, f"run={folder}", *SMALL, f"seed={seed}"]) == 0
        for rater in ("rater1", "rater2"):
            assert (sheet_at(folder, rater).read_bytes() == sheet_at(exported, rater).read_bytes()) is same


def test_a_judge_that_also_plays_is_named_beside_its_agreement(tmp_path: Path, capsys: Any) -> None:
    folder = made_run(tmp_path / "run")
    plays = [{"judge": "some-llm", "contestant": "warm", "same": "family x"}]
    board = records.read_json(folder / "ratings.json")
    records.write_json(folder / "ratings.json", board | {"judge_also_plays": plays})
    assert cli.main(["audit", CONFIG, f"run={folder}", *SMALL]) == 0
    for rater in ("rater1", "rater2"):
        fill(folder, rater, as_the_judge(folder))
    assert cli.main(["audit", CONFIG, f"run={folder}", *SMALL, "action=import"]) == 0
    assert "judge some-llm also plays: it and contestant warm share family x" in capsys.readouterr().out
    assert records.read_json(folder / "audit" / "audit.json")["judge_also_plays"] == plays
    sheets = (folder / "audit" / "hand_out").rglob("*")
    assert not any("some-llm" in p.read_text(encoding="utf-8") for p in sheets if p.is_file())


def test_what_cannot_be_drawn_is_one_sentence(tmp_path: Path, capsys: Any) -> None:
    folder = made_run(tmp_path / "run")
    for changes, said in (
        (["cases=6"], "weak-weak has 5 matches"),
        (["dimensions=12"], "dimensions: 12 a case; permitted: 1 to 11"),
        (["raters=[e1,e1]"], "permitted: different names"),
        (["raters=[e1,judge]"], "'judge'"),
        (["raters=[e1]"], "raters"),
    ):
        assert cli.main(["audit", CONFIG, f"run={folder}", *SMALL, *changes]) == 2
        assert said in capsys.readouterr().err
        assert not (folder / "audit").exists() and not (folder / "manifests").exists()
    assert cli.main(["audit", CONFIG, f"run={folder}", *SMALL]) == 0
    before = sheet_at(folder, "rater1").read_bytes()
    assert cli.main(["audit", CONFIG, f"run={folder}", "cases=2"]) == 2  # sheets given out are not written over
    assert "ran before with other config (cases: was 3, is 2" in capsys.readouterr().err
    assert sheet_at(folder, "rater1").read_bytes() == before
    assert cli.main(["audit", CONFIG, f"run={tmp_path / 'none'}"]) == 2
    assert "run psychepass tournament" in capsys.readouterr().err


def test_a_reply_that_says_who_speaks() -> None:
    script = short_script("c")
    for text, told in (("As ChatGPT I cannot.", True), ("I am Qwen3-8B", True), ("My harbour is here.", True),
                       ("I hear you, and the harbours too.", False), ("That is large.", False)):  # fmt: skip
        assert audit_draw.names_itself(session_of(script, "harbour", "train", text)) is told


# --- import --------------------------------------------------------------------------------------


def test_round_trip(copied: Path, capsys: Any) -> None:
    fill(copied, "rater1", as_the_judge(copied))
    fill(copied, "rater2", as_the_judge(copied, wrong=0.5), delimiter=";")
    assert cli.main(["audit", CONFIG, f"run={copied}", *SMALL, "action=import"]) == 0
    said = capsys.readouterr().out
    found, rows = records.read_json(copied / "audit" / "audit.json"), agreement(copied)
    assert (found["n_raters"], found["n_items"], found["n_cases"]) == (2, 36, 9)
    assert rows["all", "rater1 and judge", "kappa"]["value"] == 1
    assert rows["all", "rater1 and judge", "agreement"]["low"] < 1
    noisy = rows["all", "rater2 and judge", "kappa"]
    assert 0.1 < noisy["value"] < 0.95 and noisy["low"] < noisy["value"] < noisy["high"]
    # rater 1 is the judge's copy, so the raters agree with one another as rater 2 does with the judge
    assert rows["all", "rater1 and rater2", "kappa"]["value"] == pytest.approx(noisy["value"])
    assert f"rater2 and judge           {noisy['value']:.2f} [{noisy['low']:.2f}, {noisy['high']:.2f}]" in said
    assert "agreement of 2 raters with the judge and one another on 36 items of 9 cases" in said
    assert (copied / "audit" / "agreement.png").read_bytes().startswith(b"\x89PNG")
    with (copied / "audit" / "agreement.csv").open(encoding="utf-8") as f:
        assert len(list(csv.DictReader(f))) == len(found["agreement"])
    # a sheet is filled otherwise: import is made again
    fill(copied, "rater2", as_the_judge(copied))
    assert cli.main(["audit", CONFIG, f"run={copied}", *SMALL, "action=import"]) == 0
    assert agreement(copied)["all", "rater2 and judge", "kappa"]["value"] == 1
    assert cli.main(["audit", CONFIG, f"run={copied}", *SMALL]) == 0  # export again: nothing to do, nothing emptied
    assert rows_of(sheet_at(copied, "rater1"))[0]["verdict"]


def test_the_analysis_shows_what_the_audit_found(copied: Path) -> None:
    for rater, wrong in (("rater1", 0.2), ("rater2", 0.5)):
        fill(copied, rater, as_the_judge(copied, wrong))
    assert cli.main(["audit", CONFIG, f"run={copied}", "action=import"]) == 0
    assert cli.main(["analysis", str(ROOT / "configs" / "analysis.yaml"), f"run={copied}"]) == 0
    found = records.read_json(copied / "analysis" / "analysis.json")
    assert found["tables"]["experts"] == records.read_json(copied / "audit" / "audit.json")["agreement"]
    assert "experts.png" in found["figures"] and "experts" not in found["not_in_records"]


def test_swapping_the_order_of_a_rater_changes_no_figure(copied: Path) -> None:
    for rater, wrong in (("rater1", 0.3), ("rater2", 0.6)):
        fill(copied, rater, as_the_judge(copied, wrong, seed=len(rater)))
    key = records.read_json(copied / "audit" / "key.json")
    paths = [sheet_at(copied, rater) for rater in key["raters"]]
    before = audit.compose(key, audit.read_items(key, paths))
    rng = random.Random(3)
    for rater, path in zip(key["raters"], paths, strict=True):
        turned = {case for case in key["cases"] if rng.random() < 0.5}  # had the rater seen these the other way round
        of = {row["item"]: row for row in key["raters"][rater]["rows"]}
        rows = rows_of(path)
        for row in rows:
            if of[row["item"]]["case"] in turned:
                row["verdict"] = SWAPPED[row["verdict"]]  # type: ignore[index]
        for known in of.values():
            known["swapped"] ^= known["case"] in turned
        save(path, rng.sample(rows, len(rows)))  # and the rows in another order
    assert audit.compose(key, audit.read_items(key, paths)) == before


def changed(column: str, value: str) -> Callable[[list[dict[str, str]]], list[dict[str, str]]]:
    return lambda rows: [*rows[:1], rows[1] | {column: value}, *rows[2:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("verdict", "0"), ["row 3", "verdict '0'", "permitted: A, B, tie"]),
        (changed("verdict", " "), ["row 3", "no verdict", "permitted: A, B, tie"]),
        (changed("dimension", "ethics?"), ["row 3", "dimension 'ethics?'", "was given out with"]),
        (changed("page", "cases/x.html"), ["row 3", "page 'cases/x.html'"]),
        (changed("item", "bbbbbb"), ["row 3", "item 'bbbbbb' is not on rater1's sheet", "36 items"]),
        (lambda rows: [*rows, rows[0]], ["row 38", "a second time", "one row an item"]),
        (lambda rows: rows[:-2], ["2 of 36 rows are missing", "every row needs a verdict"]),
        (changed("sheet", "zzzzzz"), ["sheet", "zzzzzz", "permitted: one sheet of this study's key"]),
        (lambda rows: [r | {"sheet": "qqqqqq"} for r in rows], ["sheet qqqqqq", "this study's key"]),
        (lambda rows: [{k: v for k, v in r.items() if k != "verdict"} for r in rows], ["no column verdict"]),
    ],
)
def test_a_fault_of_a_sheet_is_one_sentence(
    copied: Path, capsys: Any, change: Callable[[list[dict[str, str]]], list[dict[str, str]]], said: list[str]
) -> None:
    for rater in ("rater1", "rater2"):
        fill(copied, rater, as_the_judge(copied))
    path = sheet_at(copied, "rater1")
    save(path, change(rows_of(path)))
    assert cli.main(["audit", CONFIG, f"run={copied}", *SMALL, "action=import"]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and all(part in error for part in said) and error.count("\n") == 1
    assert not (copied / "audit" / "audit.json").exists()


def test_sheets_that_do_not_belong_together(copied: Path, tmp_path: Path, capsys: Any) -> None:
    def imported(*paths: Path) -> str:
        code = cli.main(["audit", CONFIG, f"run={copied}", "action=import", f"filled=[{','.join(map(str, paths))}]"])
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1
        return error

    for rater in ("rater1", "rater2"):
        fill(copied, rater, as_the_judge(copied))
    one, two = (sheet_at(copied, r) for r in ("rater1", "rater2"))
    assert "1 sheet; the raters' own agreement needs two or more" in imported(one)
    assert "this is rater1's sheet, as" in imported(one, two, one)
    assert "no such file" in imported(one, tmp_path / "lost.csv")
    (tmp_path / "latin.csv").write_bytes(two.read_text(encoding="utf-8").replace("tie", "\xe9", 1).encode("latin-1"))
    assert "not UTF-8" in imported(one, tmp_path / "latin.csv")
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    assert "no column sheet" in imported(one, tmp_path / "empty.csv")
    other = made_run(tmp_path / "other")
    assert cli.main(["audit", CONFIG, f"run={other}", *SMALL, "seed=5"]) == 0
    capsys.readouterr()
    fill(other, "rater1", as_the_judge(other))
    assert "permitted: one sheet of this study's key" in imported(sheet_at(other, "rater1"), two)
    assert cli.main(["audit", CONFIG, f"run={made_run(tmp_path / 'bare')}", "action=import"]) == 2
    assert "key.json: no such file" in capsys.readouterr().err
