"""Rating sheets: what a rater is given, and how a filled sheet is read back.

A rater's folder holds instructions.txt, sheet.csv (a row a case and dimension; opens in any spreadsheet) and a page a
case under cases/. Sheet, pages and file names carry codes; what they stand for is in the researcher's key alone.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from psychepass.errors import UserError
from psychepass.report_data import WORDS
from psychepass.schema import Dimension, Session, Winner
from tournament.audit_draw import Shown
from tournament.slicing import present

CRITERIA_FILE = Path(__file__).resolve().parent / "prompts" / "criteria.txt"
COLUMNS = ("sheet", "item", "page", "dimension", "look_at", "criterion", "verdict", "comment")
GIVEN = ("sheet", "page", "dimension")  # columns that a rater must leave as they are, beside item
VERDICTS: tuple[Winner, ...] = get_args(Winner)
INSTRUCTIONS = f"""How to fill in the rating sheet

Each page in the folder cases shows two sessions that two therapists, A and B, held with the same client. The client
follows the same plan in both. The sessions are cut into five stages, shown in turn: A, B, B, A, A, B and so on. A
therapist is A on one page and B on another; the order says nothing about who they are.

sheet.csv has a row for each page and dimension. Read the page named in the row, look at the turns named under look_at
with the criterion in mind, and write into the column verdict

    A      if the replies of therapist A are better on this dimension
    B      if the replies of therapist B are better on it
    tie    if neither is better

Every row needs a verdict. The column comment is free. Leave the other columns as they are, and save the sheet as CSV.
Please do not talk with other raters about the pages before all have finished.

Content note: the clients are fictional. They speak of distress, and in places of trauma or of not wanting to go on.
Replies are machine-written and may be wrong or harmful. You can stop at any time.

{WORDS}
"""
STYLE = (
    "body{font:1rem/1.5 sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1F2430}"
    "h2{font-size:1.05rem;border-top:2px solid #8A8F98;padding-top:.6rem;margin-top:2rem}"
    "p{margin:.3rem 0;white-space:pre-wrap}.turn{margin-top:1rem;color:#5B6068}.client{color:#5B6068}"
    "aside{background:#F2F4F7;padding:.6rem 1rem}"
)


def criteria() -> dict[Dimension, tuple[str, str]]:
    """dimension -> (whole session or probed turns, the criterion), as the judge's prompt has them; Diversity, which is
    computed, has none."""
    found = {}
    for line in CRITERIA_FILE.read_text(encoding="utf-8").splitlines():
        head, _, text = line.partition(": ")
        name, _, where = head.partition(" (")
        if text:
            found[Dimension(name)] = (where.rstrip(")"), text)
    return found


def page(code: str, first: Session, second: Session, dimensions: Sequence[Dimension]) -> str:
    """A case as HTML: the criteria asked for, then both sessions as the judge is shown them; `first` is A."""
    asked = "".join(
        f"<li><strong>{d.value}</strong> ({_look_at(d, first)}): {html.escape(criteria()[d][1], quote=False)}</li>"
        for d in dimensions
    )
    lines = "\n".join(map(_line, present(first, second).splitlines()))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Case {code}</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>Case {code}</h1>\n<aside><p>{html.escape(WORDS, quote=False)}</p>\n"
        f"<p>Compare therapist A with therapist B on:</p><ul>{asked}</ul></aside>\n{lines}\n</body></html>\n"
    )


def _line(line: str) -> str:
    text = html.escape(line, quote=False)
    if line.startswith("=== Therapist "):
        return f"<h2>{text.strip('= ')}</h2>"
    if line.startswith("Turn "):
        return f'<p class="turn">{text}</p>'
    return f'<p class="client">{text}</p>' if line.startswith("Client: ") else f"<p>{text}</p>"


def _look_at(d: Dimension, session: Session) -> str:
    if d.is_global:
        return "whole session"
    turns = session.reply_turns(d)
    return f"turn{'s' if len(turns) > 1 else ''} {', '.join(map(str, turns))}"


def sheet(code: str, shown: Sequence[Shown], sessions: Mapping[str, Session]) -> str:
    """sheet.csv with empty verdicts; `sessions` by case."""
    text = io.StringIO()
    table: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, lineterminator="\r\n")
    table.writeheader()
    for case in shown:
        for d, item in case.items.items():
            where, criterion = _look_at(d, sessions[case.case]), criteria()[d][1]
            row = {"sheet": code, "item": item, "page": f"cases/{case.code}.html", "dimension": d.value}
            table.writerow(row | {"look_at": where, "criterion": criterion, "verdict": "", "comment": ""})
    return text.getvalue()


def sheet_of(key: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Winner]]:
    """(rater, item code -> verdict as the rater saw the order) of a filled sheet; every row of the sheet, each once.

    Raises:
        UserError: not a CSV of these columns; a sheet of another study; a row twice, missing, changed or without a
            verdict; a verdict that is none.
    """
    rows = _rows(path)
    codes = {r["sheet"].strip() for r in rows}
    raters = {of["sheet"]: name for name, of in key["raters"].items()}
    if len(codes) != 1 or not codes <= raters.keys():
        found = ", ".join(sorted(codes)) or "no row"
        raise UserError(f"{path}: sheet {found}; permitted: one sheet of this study's key ({', '.join(raters)})")
    rater = raters[codes.pop()]
    expected = {row["item"]: row for row in key["raters"][rater]["rows"]}
    verdicts: dict[str, Winner] = {}
    for number, row in enumerate(rows, start=2):
        item, where = row["item"].strip(), f"{path}, row {number}"
        if item not in expected:
            raise UserError(f"{where}: item {item!r} is not on {rater}'s sheet; permitted: its {len(expected)} items")
        if item in verdicts:
            raise UserError(f"{where}: item {item!r} stands here a second time; permitted: one row an item")
        for column in ("page", "dimension"):
            if row[column].strip() != expected[item][column]:
                raise UserError(
                    f"{where}: {column} {row[column]!r}; the sheet was given out with {expected[item][column]!r}"
                )
        verdicts[item] = _verdict(row["verdict"], where)
    missing = [i for i in expected if i not in verdicts]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(expected)} rows are missing, first item {missing[0]!r} "
            f"({expected[missing[0]]['page']}, {expected[missing[0]]['dimension']}); every row needs a verdict"
        )
    return rater, verdicts


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a filled sheet.csv")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text ({e.reason} at byte {e.start}); save the sheet as CSV in UTF-8") from e
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)  # what a spreadsheet writes depends on its country
    table = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    found = tuple(table[0]) if table else tuple(head.strip().split(delimiter))
    missing = [c for c in COLUMNS[:-1] if c not in found]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected a CSV with {', '.join(COLUMNS)}")
    return [{c: row.get(c) or "" for c in COLUMNS} for row in table if any(v for v in row.values())]


def _verdict(text: str, where: str) -> Winner:
    for verdict in VERDICTS:
        if text.strip().casefold() == verdict.casefold():
            return verdict
    said = f"verdict {text!r}" if text.strip() else "no verdict"
    raise UserError(f"{where}: {said}; permitted: {', '.join(VERDICTS)}")
