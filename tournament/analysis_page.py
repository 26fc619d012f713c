"""The analysis as one self-contained HTML page: each table in full under its figure, for a run of any stage reached."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from psychepass import report, report_data
from tournament.match_tables import Row

HERE = Path(__file__).resolve().parent
PAGE, TEMPLATE = "analysis.html", "analysis.html.j2"
CODE = [HERE / "analysis_page.py", HERE / TEMPLATE]


class Part(NamedTuple):
    """A section: the tables that it shows, and figures by their file names without `.png`, where they were made."""

    id: str
    title: str
    words: str
    tables: tuple[str, ...]
    figures: tuple[str, ...]


PARTS = (
    Part(
        "leaderboard",
        "Leaderboard",
        "Bradley-Terry ratings (Table 2): 100 is the field's mean, 400 points more mean odds of 10 to 1. rank_high and "
        "rank_low are the ends of the rank's interval.",
        ("leaderboard",),
        ("table2_leaderboard",),
    ),
    Part(
        "experts",
        "Agreement with human raters",
        "Chance-corrected agreement (Table 3) between raters, and between raters and the judge.",
        ("experts",),
        ("experts",),
    ),
    Part(
        "before-after",
        "Before and after training",
        "How often the aligned policy won, tied and lost against the base policy on held-out clients (Figure 3).",
        ("before_after",),
        ("figure3_before_after",),
    ),
    Part(
        "convergence",
        "Convergence by round",
        "Ratings and agreement of their ranking with the last one, round by round (Figure 4).",
        ("ratings_by_round", "agreement_by_round"),
        ("figure4_ratings_by_round", "figure4_agreement_by_round"),
    ),
    Part(
        "position-bias",
        "Position bias",
        "How often the session shown first, and the one shown second, won (Figure 5). Without bias A − B is 0. "
        "Stage slices and whole sessions, where both were judged, are compared on the matches that both have.",
        ("position_bias",),
        ("figure5_position_bias",),
    ),
    Part(
        "one-sided",
        "One-sided battles",
        "Battles in which one session won all dimensions, by how far apart the two stand in the ranking (Figure 6).",
        ("one_sided",),
        ("figure6_one_sided",),
    ),
    Part(
        "win-rates", "Win rates by dimension", "A tie is half a win (Figure 7).", ("win_rates",), ("figure7_win_rates",)
    ),
    Part(
        "order-consistency",
        "Order consistency",
        "How often both presentation orders of a match gave the same verdict (Figure 8).",
        ("order_consistency",),
        ("figure8_order_consistency",),
    ),
    Part(
        "repetition",
        "Repetition",
        "How often the same judge, asked again, gave the same verdict.",
        ("repetition",),
        ("repetition",),
    ),
    Part(
        "controlled",
        "Win rates at equal length and style",
        "Raw win rates (by the same model, against the whole field: not those against the opponents met) beside those "
        "at equal reply length, and at equal length and formatting; below, how much each "
        "feature weighs.",
        ("controlled_win_rates", "controlled_coefficients"),
        ("controlled_win_rates",),
    ),
)


def compose(name: str, found: Mapping[str, Any], folder: Path, unverified: str) -> str:
    """The page of `found`, all of analysis.json; its figures lie in `folder` as PNG.

    `name` is the run's; `unverified` marks clients that no person has verified, or is empty.
    """
    parts = [part for part in PARTS if any(found["tables"][table] for table in part.tables)]
    drawn = [path for part in parts for f in part.figures if (path := folder / f"{f}.png").is_file()]
    template = report.environment(HERE).get_template(TEMPLATE)
    return template.render(
        name=name,
        judge=found["judge"],
        ranking=found["ranking"],
        missing=found["not_in_records"],
        words=found["words"],
        unverified=unverified,
        parts=parts,
        tables={t: [_cells(row) for row in found["tables"][t]] for part in parts for t in part.tables},
        titles=titles(found["tables"]),
        figures={path.stem: _source(path) for path in drawn},
    )


def titles(tables: Mapping[str, Sequence[Row]]) -> dict[str, list[str]]:
    """table -> its columns as the page heads them: value and the ends of its interval are one."""
    return {name: [_title(key) for key in _shown(rows[0])] for name, rows in tables.items() if rows}


def _shown(row: Row) -> list[str]:
    return [key for key in row if key not in ("low", "high")]


def _title(key: str) -> str:
    return "value, 95\u202f% interval" if key == "value" else key.replace("_", " ")


def _cells(row: Row) -> list[Any]:
    """A row's cells: text, numbers, and the value as {"value", "low", "high"}."""
    ends = {k: row.get(k) for k in ("value", "low", "high")}
    return [ends if k == "value" else report_data.LABELS.get(row[k], row[k]) for k in _shown(row)]


def _source(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
