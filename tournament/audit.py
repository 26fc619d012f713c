"""Stage `audit`: do human raters decide as the judge does, and as one another (PsychePass, section 4.4, Table 3)?

    psychepass audit configs/audit.yaml                  # action: export
    psychepass audit configs/audit.yaml action=import    # when the sheets are filled

export draws matches of the run (audit_draw) and writes under <run>/audit/: a folder hand_out/<rater> for each rater,
with pages and a sheet that name nobody (audit_sheets), and key.json, which says what the codes stand for: it stays with
the researcher. import reads the filled sheets of two or more raters and writes audit.json, agreement.csv and
agreement.png: kappa of each rater with the judge, by stratum, with the raters' kappa with one another beside it
(rater_agreement). Import is done anew at every call; export never writes over sheets.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import file_hash, stage_run
from psychepass.schema import SWAPPED, Session
from tournament import audit_draw, audit_sheets
from tournament.analysis import read_battles
from tournament.audit_draw import Case, Shown
from tournament.panel import also_plays
from tournament.rater_agreement import JUDGE, Item, Row, agreement_rows

NAME = r"^[a-z0-9][a-z0-9_-]*$"
UNIT = "client (a case belongs to one client): delete-one-client jackknife with t(n - 1), 95 %"


class AuditConfig(StageConfig):
    """`cases` of each stratum and `dimensions` of each case are drawn; Table 3 has 10 and 4. `raters` name the folders
    that are handed out. `filled`: the sheets to import; null is each rater's sheet.csv where export left it."""

    action: Literal["export", "import"] = "export"
    cases: int = Field(default=10, ge=1)
    dimensions: int = Field(default=4, ge=1)
    raters: list[str] = Field(default=["rater1", "rater2"], min_length=2)
    filled: list[str] | None = None


def main(config_path: str, overrides: list[str]) -> None:
    config = load(AuditConfig, config_path, overrides)
    _check_raters(config.raters)
    if config.action == "export":
        export(config)
    else:
        import_sheets(config)


def _check_raters(raters: Sequence[str]) -> None:
    bad = [r for r in raters if not re.match(NAME, r) or r == JUDGE]
    if bad or len(set(raters)) < len(raters):
        raise UserError(
            f"raters: {', '.join(map(repr, bad or raters))}; permitted: different names of small letters, digits, - "
            f"and _, not {JUDGE!r}"
        )


# --- export --------------------------------------------------------------------------------------


def export(config: AuditConfig) -> None:
    """Draw the cases and write pages, sheets and key.

    Raises:
        UserError: too few matches, or sheets of another config are there.
    """
    folder = Path(config.run)
    inputs = [folder / "sessions.jsonl", folder / "battles.jsonl", folder / "ratings.json"]
    missing = [p for p in inputs if not p.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such file; the audit draws from a tournament, so run psychepass tournament")
    battles = read_battles(inputs[1])
    met = {i for b in battles for i in (b.session_a, b.session_b)}
    sessions = {s.id: s for s in records.iterate(inputs[0], Session) if s.id in met}
    board = records.read_json(inputs[2])
    ranking = [row["contestant"] for row in board["overall"]]
    named = {i for i, s in sessions.items() if audit_draw.names_itself(s)}
    matches = audit_draw.matches_of(battles, ranking)
    blind = [m for m in matches if not named & {m.first, m.second}]
    asked = list(audit_sheets.criteria())
    cases = audit_draw.draw(blind, config.cases, config.dimensions, asked, config.seed)
    ignored = frozenset({"run", "action", "filled"})
    with stage_run("audit-export", config, inputs, ignored) as run:
        if run.done:
            return
        key = write_sheets(folder / "audit", cases, sessions, config)
        key |= {"judge": battles[0].judge.model_dump(mode="json"), "ranking": ranking}
        key["judge_also_plays"] = board.get("judge_also_plays", [])
        key["matches"] = {"all": len(matches), "left_out_naming_a_model": len(matches) - len(blind)}
        records.write_json(folder / "audit" / "key.json", key)
        run.note(cases=len(cases), items=sum(len(c.dimensions) for c in cases), raters=len(config.raters))
    hand_out = folder / "audit" / "hand_out"
    print(f"{len(cases)} cases; give each rater their folder in {hand_out}, and keep {folder / 'audit' / 'key.json'}")


def write_sheets(
    folder: Path, cases: Sequence[Case], sessions: Mapping[str, Session], config: AuditConfig
) -> dict[str, Any]:
    """The raters' folders; returns the key."""
    taken: set[str] = set()
    of_case = {c.name: c for c in cases}
    raters = {}
    for rater in config.raters:
        shown = audit_draw.presentation(cases, rater, config.seed, taken)
        code = audit_draw.code(random.Random(f"sheet {config.seed} {rater}"), taken)
        out = folder / "hand_out" / rater
        for one in shown:
            match = of_case[one.case].match
            first, second = sessions[match.first], sessions[match.second]
            if one.swapped:
                first, second = second, first
            records.write_atomic(
                out / "cases" / f"{one.code}.html", audit_sheets.page(one.code, first, second, list(one.items))
            )
        text = audit_sheets.sheet(code, shown, {c.name: sessions[c.match.first] for c in cases})
        records.write_atomic(out / "sheet.csv", "\ufeff" + text)
        records.write_atomic(out / "instructions.txt", audit_sheets.INSTRUCTIONS)
        raters[rater] = {"sheet": code, "rows": _rows_of(shown)}
    return {"seed": config.seed, "cases": {c.name: _described(c) for c in cases}, "raters": raters}


def _rows_of(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    return [
        {"item": item, "case": one.case, "dimension": d.value, "page": f"cases/{one.code}.html", "swapped": one.swapped}
        for one in shown
        for d, item in one.items.items()
    ]


def _described(case: Case) -> dict[str, Any]:
    match = case.match
    return {
        "stratum": match.stratum,
        "client": match.client,
        "sessions": [match.first, match.second],
        "contestants": list(match.contestants),
        "judge": {d.value: match.verdicts[d] for d in case.dimensions},
    }


# --- import --------------------------------------------------------------------------------------


def import_sheets(config: AuditConfig) -> None:
    """Read the filled sheets, print and write the agreement.

    Raises:
        UserError: no key, fewer than two raters, or a sheet with a fault.
    """
    folder = Path(config.run) / "audit"
    key = records.read_json(folder / "key.json")
    paths = [Path(p) for p in config.filled or []]
    paths = paths or [folder / "hand_out" / rater / "sheet.csv" for rater in key["raters"]]
    items = read_items(key, paths)
    # seconds of work that hold nothing that could be lost: done at every call, so that no changed sheet is overlooked
    (Path(config.run) / "manifests" / "audit-import.json").unlink(missing_ok=True)
    with stage_run("audit-import", config, [folder / "key.json", *paths]) as run:
        found = compose(key, items)
        write(found, folder)
        run.note(items=len(items), sheets={str(path): file_hash(path) for path in paths})
    print(told(found))


def read_items(key: Mapping[str, Any], paths: Sequence[Path]) -> list[Item]:
    """Every case and dimension with the verdicts of judge and raters, turned into the order of the key."""
    sheets: dict[str, Path] = {}
    verdicts: dict[tuple[str, str], dict[str, Any]] = {}
    for path in paths:
        rater, said = audit_sheets.sheet_of(key, path)
        if rater in sheets:
            raise UserError(f"{path}: this is {rater}'s sheet, as {sheets[rater]} is; permitted: one sheet a rater")
        sheets[rater] = path
        for row in key["raters"][rater]["rows"]:
            verdict = said[row["item"]]
            of = verdicts.setdefault((row["case"], row["dimension"]), {})
            of[rater] = SWAPPED[verdict] if row["swapped"] else verdict
    if len(sheets) < 2:
        raise UserError(f"filled: {len(sheets)} sheet; the raters' own agreement needs two or more")
    found = []
    for name, case in key["cases"].items():
        for dimension, by_judge in case["judge"].items():
            said = verdicts[name, dimension] | {JUDGE: by_judge}
            found.append(Item(case["stratum"], case["client"], name, dimension, said))
    return found


def compose(key: Mapping[str, Any], items: Sequence[Item]) -> dict[str, Any]:
    """audit.json."""
    raters = sorted(set(items[0].verdicts) - {JUDGE})
    strata = [s for s in audit_draw.STRATA if any(i.stratum == s for i in items)]
    clients, cases = len({i.client for i in items}), len({i.case for i in items})
    said = f"agreement of {len(raters)} raters with the judge and one another on {len(items)} items of {cases} cases"
    return {
        "judge": key["judge"],
        "judge_also_plays": key.get("judge_also_plays", []),
        "raters": raters,
        "n_raters": len(raters),
        "n_items": len(items),
        "n_cases": cases,
        "n_clients": clients,
        "matches": key["matches"],
        "unit": UNIT,
        "statement": f"Measured: {said}, and nothing beyond it.",
        "agreement": agreement_rows(items, raters, strata),
    }


def write(found: Mapping[str, Any], folder: Path) -> None:
    """agreement.csv, agreement.png, and audit.json last."""
    from tournament import figures

    rows: list[Row] = found["agreement"]
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    records.write_atomic(folder / "agreement.csv", text.getvalue())
    figures.save_experts(rows, folder / "agreement.png")
    records.write_json(folder / "audit.json", found)


def told(found: Mapping[str, Any]) -> str:
    """The table that import prints."""
    judge = found["judge"]
    lines = [f"judge {judge['name']}, rubric {judge['rubric_version']}. {found['statement']}"]
    lines += map(also_plays, found["judge_also_plays"])
    lines.append(f"Square brackets: 95 %, unit {found['unit']}; -: not bounded by these data.")
    lines.append(f"{'':<15} {'between':<26} {'kappa':<22} {'same verdict':<22} {'ties':<12} n")
    same = {(r["of"], r["name"], r["between"]): r for r in found["agreement"] if r["measure"] == "agreement"}
    for row in found["agreement"]:
        if row["measure"] == "agreement" or row["of"] == "dimension":
            continue
        other = same.get((row["of"], row["name"], row["between"])) if row["measure"] == "kappa" else None
        between = row["between"] if row["measure"] == "kappa" else "raters, alpha"
        share = _ends(other) if other else ""
        said = f"{row['ties_first']:.0%}, {row['ties_second']:.0%}"
        n = f"{row['n']} clients, {row['cases']} cases, {row['items']} items"
        lines.append(f"{row['name']:<15} {between:<26} {_ends(row):<22} {share:<22} {said:<12} {n}")
    return "\n".join([*lines, "By dimension: agreement.csv and agreement.png."])


def _ends(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "not defined"
    low, high = ("-" if row[k] is None else f"{row[k]:.2f}" for k in ("low", "high"))
    return f"{row['value']:.2f} [{low}, {high}]"
