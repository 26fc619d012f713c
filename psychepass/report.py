"""Stage `report`: one self-contained HTML page over a run's files, and its figures as PNG.

Reads files of the run only; the page's numbers are those of the files, rounded. The report is the one stage
that is made again when anything it rests on changed (the files, its config, its own code), because it holds
nothing that could be lost; an unchanged report is left as it is.
"""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from psychepass import records, report_data
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import StageRun, stage_run
from psychepass.schema import Dimension, Session
from psychepass.stats import EXACT_CLIENTS

HERE = Path(__file__).resolve().parent
CODE = [HERE / n for n in ("report.py", "report_data.py", "report_figures.py", "report.html.j2", "report.css.j2")]
STATEMENT_RUN = "One training run; intervals cover clients, not training seeds."
CONTENTS = (
    ("judge", "The judge"),
    ("before-after", "Before and after"),
    ("reward", "Mean reward"),
    ("gate", "Safety gate"),
    ("drift", "Style drift"),
    ("transcripts", "Transcripts"),
    ("leaderboard", "Leaderboard"),
    ("raters", "Human raters"),
    ("reward-model", "Reward model"),
    ("training", "Training curves"),
    ("run", "What was run"),
    ("limits", "Limits"),
)
MEASURES = ("overall", *(d.value for d in Dimension))
DRIFT_LABELS = {
    "reply_words": "Words a reply",
    "reused_opening": "Replies that open with the three words of an earlier one",
    "copied_run": "Replies with seven or more words in a row from the client",
    "hotline": "Replies outside crisis turns that name a hotline",
    "unfinished": "Replies without an end",
}


class ReportConfig(StageConfig):
    """The report has no knob of its own."""


def main(config_path: str, overrides: list[str]) -> None:
    config = load(ReportConfig, config_path, overrides)
    run_dir = Path(config.run)
    inputs = report_data.inputs(run_dir)
    forget_if_stale(run_dir, [*inputs, *CODE], config)
    with stage_run("report", config, [*inputs, *CODE]) as run:
        if run.done:
            return
        page = compose(run_dir)
        records.write_atomic(run_dir / "report.html", page)
        run.note(bytes=len(page.encode()))


def forget_if_stale(run_dir: Path, inputs: list[Path], config: ReportConfig) -> None:
    """Delete the report's manifest where the page is missing or rests on other files: it is then made again."""
    path = run_dir / "manifests" / "report.json"
    try:
        StageRun("report", config, inputs, frozenset({"run"}))
        stale = not (run_dir / "report.html").is_file()
    except UserError:
        stale = True
    if stale:
        path.unlink(missing_ok=True)


def compose(run_dir: Path) -> str:
    """The page's HTML; writes figures/*.png on the way.

    Raises:
        UserError: a file that lacks a number the page prints.
    """
    from psychepass import report_figures

    try:
        facts = read_facts(run_dir)
        drawn = (facts["s"], facts["ratings"], facts["accuracies"], facts["calibration"])
        figures, curves = report_figures.draw(run_dir, *drawn)
        template = environment().get_template("report.html.j2")
        return template.render(**facts, figures=figures, curves=curves)
    except (KeyError, jinja2.UndefinedError) as e:
        raise UserError(f"{run_dir}: a file of this run lacks what the report prints: {e}; run its stage again") from e


def read_facts(run_dir: Path) -> dict[str, Any]:
    """Everything that the template prints, but for the figures, by the template's names."""
    summary = records.read_json(run_dir / "heldout" / "summary.json")
    ratings = records.read_json(run_dir / "ratings.json")
    judges = records.read_json(run_dir / "judge.json")
    stages = report_data.manifests(run_dir)
    sessions = records.read(run_dir / "heldout" / "sessions.jsonl", Session)
    metrics = records.read_json(run_dir / "reward_model" / "metrics.json")
    accuracies = report_data.accuracies(metrics)
    contestants = [r["contestant"] for r in ratings["overall"]]
    last, audit = stages["heldout"], report_data.audit(run_dir)
    best_of_n = run_dir / report_data.BEST_OF_N
    return {
        "name": run_dir.resolve().name,
        "ended": last["ended"],
        "s": summary,
        "headline": report_data.headline(summary, judges.get("panel")),
        "words": report_data.WORDS,
        "unverified": report_data.unverified_clients(run_dir),
        "statement_run": STATEMENT_RUN,
        "labels": report_data.LABELS,
        "drift_labels": DRIFT_LABELS,
        "contents": [c for c in CONTENTS if audit or c[0] != "raters"],
        "audit": audit,
        "judge": judges["judge"],
        "shadow_judge": judges["shadow"],
        "panel": judges.get("panel"),  # the LLM judges of the tournament, if it had any
        "llm": summary.get("llm_judges"),  # those that measured held out, if any did
        "one_judge": (judges.get("panel") or {}).get("name") == (summary.get("llm_judges") or {}).get("name"),
        "label_too": sorted(models(judges.get("panel")) & models(summary.get("llm_judges"))),
        "played": summary.get("client"),  # the model that played the held-out clients, if one did
        "minors": report_data.clients_under_18(run_dir),
        "ratings": ratings,
        "contestants": contestants,
        "heat": heat(ratings, contestants),
        "letters": letters(ratings["groups"]["overall"]),
        "fragile": fragile(ratings),
        "before_after": before_after(summary),
        "accuracy": accuracies[0][1],
        "which_therapist": metrics.get("which_therapist"),
        "longer": metrics.get("longer_wins"),
        "accuracies": accuracies,
        "calibration": metrics["calibration"],
        "rank_agreement": metrics["rank_agreement"],
        "read": metrics.get("read"),
        "pairs_with": metrics["pairs_with"],
        "left_out": metrics.get("left_out"),
        "leave_one_out": report_data.leave_one_out(run_dir),
        "best_of_n": records.read_json(best_of_n) if best_of_n.is_file() else None,
        "t": report_data.transcripts(sessions, summary),
        "failed_sessions": report_data.failed_sessions(run_dir),
        "stages": stages,
        "total_seconds": sum(m["seconds"] for m in stages.values()),
        "versions": ", ".join(f"{k} {v}" for k, v in last["versions"].items()),
        "machine": f"{last['machine']['platform']}, {last['machine']['cpus']} CPUs",
        "data": records.read_json(run_dir / "data.json"),
        "overrides": records.read_json(run_dir / "grpo" / "overrides.json"),
        "openings": records.read_json(run_dir.parent / report_data.OPENINGS),
    }


def models(judges: dict[str, Any] | None) -> set[str]:
    """Of LLM judges, whatever names they go by."""
    return {judge["model"] for judge in (judges or {}).get("judges", ())}


def before_after(summary: dict[str, Any]) -> list[tuple[str, Any, Any, Any, Any]]:
    """(measure, judge, shadow judge, base against base, the reference judge beside LLM judges), Overall first."""

    def rows(table: dict[str, Any]) -> list[Any]:
        return [table["overall"] if m == "overall" else table["dimensions"][m] for m in MEASURES]

    tables = [rows(summary), rows(summary["shadow"]), rows(summary["base_vs_base"])]
    beside = rows(summary["reference"]) if "reference" in summary else [None] * len(MEASURES)
    return list(zip(MEASURES, *tables, beside, strict=True))


def heat(ratings: dict[str, Any], contestants: list[str]) -> list[tuple[str, list[Any]]]:
    """A row a measure, a rating a contestant in the order of the overall ranking."""
    rows = []
    for measure in MEASURES:
        table = ratings["overall"] if measure == "overall" else ratings["dimensions"][measure]
        of = {r["contestant"]: r for r in table}
        rows.append((measure, [of[c] for c in contestants]))
    return rows


def letters(groups: list[list[str]]) -> dict[str, str]:
    """contestant -> the letters of the groups it stands in, in the order of the ranking; numbers after z."""
    found: dict[str, str] = {}
    for i, group in enumerate(groups):
        for contestant in group:
            letter = chr(ord("a") + i) if i < 26 else f" {i + 1}"
            found[contestant] = found.get(contestant, "") + letter
    return found


def fragile(ratings: dict[str, Any]) -> dict[str, str]:
    """measure -> why only the prior keeps its ratings finite: in the data, or in some resamples of the clients."""
    found = {}
    for measure in MEASURES:
        graph, share = ratings["graph"][measure], ratings["resamples_flagged"][measure]
        if graph != "ok":
            found[measure] = graph
        elif share:
            found[measure] = f"in {percent(share)} of resamples"
    return found


def environment(*folders: Path) -> jinja2.Environment:
    """The report's filters and templates, and those of further folders."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, *folders]),
        autoescape=lambda name: name is not None and ".css" not in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["ordered"] = lambda table: [(m, table[m]) for m in MEASURES if m in table]
    environment.globals["exact_clients"] = EXACT_CLIENTS
    environment.filters |= {
        "number": number,
        "percent": percent,
        "tint": tint,
        "points": points,
        "day": day,
        "plain": plain,
    }
    return environment


def number(x: float | None, digits: int = 2, sign: bool = False, unbounded: str = "—") -> str:
    """A number with a true minus sign; None is an end without bound."""
    if x is None:
        return unbounded
    text = f"{x:+,.{digits}f}" if sign else f"{x:,.{digits}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(x: float | None, digits: int = 0) -> str:
    """A share in percents, with a decimal more where rounding would make it look like none or all."""
    if x is None:
        return "—"
    text = f"{100 * x:.{digits}f}"
    if float(text) in (0, 100) and x not in (0, 1):
        text = f"{100 * x:.{digits + 1}f}"
    return text + "\u202f%"


def points(x: float | None) -> str:
    """The end of a difference of shares, in percentage points."""
    return "no bound" if x is None else number(100 * x, 0, True)


def day(time: str) -> str:
    """2026-01-31T10:00:00+0000 as 31 January 2026, 10:00; anything else as it is."""
    try:
        return datetime.strptime(time, "%Y-%m-%dT%H:%M:%S%z").strftime("%-d %B %Y, %H:%M")
    except ValueError:
        return time


def plain(value: Any) -> str:
    """A config value in words: null is none, a section its keys and values."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())
    return "none" if value is None else str(value)


def tint(rating: float) -> str:
    """Background of a heat cell: white at 100, blue above, orange below, full at 300 points off."""
    share = min(1.0, abs(rating - 100) / 300)
    full = (0, 114, 178) if rating >= 100 else (213, 94, 0)
    shade = [round(255 + 0.75 * math.sqrt(share) * (c - 255)) for c in full]
    return f"background:rgb({shade[0]},{shade[1]},{shade[2]})"
