"""Stage `analysis`: what a run's battles say beside its ratings, each a table and a figure with intervals.

Reads ratings.json, battles.jsonl and sessions.jsonl of the run, heldout/summary.json and audit/audit.json where they
are there, and the battles of two further runs where the config names them. Writes under <run>/analysis/: a CSV a table,
PNG figures, analysis.html with both, and analysis.json with all tables and, under `not_in_records`, what the records do
not allow and why.
Tables of PsychePass: 2 leaderboard, 3 experts (what stage audit found); figures: 3 before_after, 4 ratings_by_round
and agreement_by_round, 5 position_bias, 6 one_sided, 7 win_rates, 8 order_consistency. Beside them repetition,
controlled_win_rates and their coefficients. Like the report it is made again when anything it rests on changed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, model_validator

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.report_data import WORDS, unverified_clients
from psychepass.run import StageRun, stage_run
from psychepass.schema import Battle, JudgeIdentity, Session
from tournament import analysis_page, convergence, length_control, match_tables, ratings
from tournament.llm_judge import but_for_seed
from tournament.match_tables import Row
from tournament.pairing import PairingName
from tournament.slicing import SLICES, WHOLE

HELDOUT = Path("heldout") / "summary.json"
AUDIT = Path("audit") / "audit.json"
EXPERTS = "agreement with experts (Table 3): no verdicts of experts are there; stage audit gives out sheets for them"
NO_WIDTH = 1e-4  # of a win rate: what the regression's tolerance leaves
ORDER_FREE = "the judge scores each session alone, so both orders agree by construction and one was recorded"


class AnalysisConfig(StageConfig):
    """Further runs over the same sessions.jsonl, where there are any: `unsliced`, in which the same model saw whole
    sessions one after the other (before debiasing), and `repeated`, in each of which the same judge was asked again,
    with another seed: with the same one a server may repeat itself word by word."""

    unsliced: str | None = None
    repeated: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _check_repeated(self) -> AnalysisConfig:
        runs = [Path(run).resolve() for run in (self.run, *self.repeated)]
        if twice := [run for i, run in enumerate(runs) if run in runs[:i]]:
            raise ValueError(f"repeated: {twice[0]} stands here twice or is the run itself; permitted: each run once")
        return self


def main(config_path: str, overrides: list[str]) -> None:
    config = load(AnalysisConfig, config_path, overrides)
    folder = Path(config.run)
    inputs = inputs_of(config)
    try:
        stale = not StageRun("analysis", config, inputs, frozenset({"run"})).done
    except UserError:
        stale = True  # it holds nothing that could be lost
    if stale or not (folder / "analysis" / "analysis.json").is_file():
        (folder / "manifests" / "analysis.json").unlink(missing_ok=True)
    with stage_run("analysis", config, inputs) as run:
        if run.done:
            return
        found = analyse(config)
        write(found, folder)
        run.note(tables={name: len(rows) for name, rows in found["tables"].items()})


def inputs_of(config: AnalysisConfig) -> list[Path]:
    """The files the analysis rests on.

    Raises:
        UserError: one is missing; names it and the stage that writes it.
    """
    folder = Path(config.run)
    needed = [folder / "sessions.jsonl", folder / "ratings.json", folder / "battles.jsonl"]
    needed += [Path(other) / "battles.jsonl" for other in (config.unsliced, *config.repeated) if other]
    needed += [Path(config.unsliced) / "ratings.json"] if config.unsliced else []
    for path in needed:
        if not path.is_file():
            stage = "simulate" if path.name == "sessions.jsonl" else "tournament"
            raise UserError(f"{path}: no such file; the analysis needs it, so run psychepass {stage} first")
    optional = [folder / HELDOUT, folder / AUDIT, folder / "profiles.jsonl"]
    return [*needed, *(p for p in optional if p.is_file()), *analysis_page.CODE]


def analyse(config: AnalysisConfig) -> dict[str, Any]:
    """All of analysis.json."""
    folder = Path(config.run)
    board = records.read_json(folder / "ratings.json")
    battles = read_battles(folder / "battles.jsonl")
    ranking = [row["contestant"] for row in board["overall"]]
    played = {i for b in battles for i in (b.session_a, b.session_b)}
    sessions = {s.id: s for s in records.iterate(folder / "sessions.jsonl", Session) if s.id in played}
    if played - sessions.keys():
        raise UserError(f"{folder / 'battles.jsonl'}: session {min(played - sessions.keys())} is not in sessions.jsonl")
    rates, coefficients = length_control.controlled_win_rates(battles, sessions, ranking, config.seed)
    tables = {
        "leaderboard": leaderboard(board),
        "experts": records.read_json(folder / AUDIT)["agreement"] if (folder / AUDIT).is_file() else [],
        **_orders(battles, ranking, board.get("shown", SLICES), config),
        **_convergence(battles, ranking, board, config.seed),
        "before_after": before_after(folder / HELDOUT),
        "one_sided": match_tables.one_sided(battles, ranking),
        "win_rates": match_tables.win_rates(battles, ranking),
        "controlled_win_rates": rates,
        "controlled_coefficients": coefficients,
    }
    judge = {k: board[k] for k in ("judge", "rubric_version", "failures", "tie_rate", "n_clients", "n_battles")}
    judge |= {k: board[k] for k in ("judges", "judge_also_plays", "served_models") if k in board}  # with LLM judges
    missing = not_in_records(tables, battles, coefficients) | not_bounded(board.get("graph", {}), rates)
    return {"judge": judge, "ranking": ranking, "tables": tables, "not_in_records": missing, "words": WORDS}


def read_battles(path: Path) -> list[Battle]:
    """Raises UserError for a file without battles, or with battles of two judges."""
    battles = records.read(path, Battle)
    judges = sorted({f"{b.judge.name} {b.judge.model} {b.judge.rubric_version} {b.judge.prompt_hash}" for b in battles})
    if len(judges) != 1:
        raise UserError(f"{path}: {len(judges)} judges ({'; '.join(judges)}); an analysis is of one judge's battles")
    return battles


def leaderboard(board: Mapping[str, Any]) -> list[Row]:
    """Table 2: ratings, rank intervals and win rates as ratings.json has them, by measure."""
    rows = []
    for measure in ratings.COLUMNS:
        for row in board["overall"] if measure == "overall" else board["dimensions"][measure]:
            rest = {k: v for k, v in row.items() if k not in ("contestant", "rating", "low", "high")}
            ends = {"value": row["rating"], "low": row["low"], "high": row["high"], "n": board["n_clients"]}
            rows.append({"contestant": row["contestant"], "measure": measure, **ends, **rest})
    return rows


def before_after(path: Path) -> list[Row]:
    """Figure 3: how often the aligned policy won, tied and lost on held-out clients, as stage heldout found it."""
    if not path.is_file():
        return []
    summary, rows = records.read_json(path), []
    for measure in ratings.COLUMNS:
        of = summary["overall"] if measure == "overall" else summary["dimensions"][measure]
        for verdict in ("win", "tie", "loss"):
            ends = {"value": of[verdict], "low": of[f"{verdict}_low"], "high": of[f"{verdict}_high"]}
            counts = {"n": of["n"], "battles": of["battles"], "judge": of["judge"]}  # maybe not the tournament's
            rows.append({"measure": measure, "verdict": verdict, **ends, **counts})
    return rows


def _orders(
    battles: Sequence[Battle], ranking: Sequence[str], shown: str, config: AnalysisConfig
) -> dict[str, list[Row]]:
    """What needs a second presentation: position bias, order consistency, repetition."""
    ways = {shown: match_tables.both_orders(battles)}
    if config.unsliced:
        ways[WHOLE] = match_tables.both_orders(_unsliced(battles, shown, Path(config.unsliced)))
    bias, consistency = [], []
    for way, matches in match_tables.of_all(ways).items():
        if matches:
            bias += [{"shown": way, **row} for row in match_tables.position_bias(matches)]
            consistency += [{"shown": way, **row} for row in match_tables.order_consistency(matches, ranking)]
    again = [_of_same_sessions(battles, Path(other) / "battles.jsonl") for other in config.repeated]
    for other, of in zip(config.repeated, again, strict=True):
        found, wanted = ([but_for_seed(j) for j in _judges(b[0])] for b in (of, battles))
        if found != wanted:
            raise UserError(
                f"repeated: {other} was judged by {_told(found)}, this run by {_told(wanted)}; expected a run of the "
                "same judge, whose seed alone may differ"
            )
    seeds = len({repr(_judges(of[0])) for of in (battles, *again)})
    repeats = [{**row, "seeds": seeds} for row in match_tables.repetition(battles, *again)] if again else []
    return {"position_bias": bias, "order_consistency": consistency, "repetition": repeats}


def _unsliced(battles: Sequence[Battle], shown: str, other: Path) -> list[Battle]:
    """The battles of the run before debiasing; raises UserError where they say nothing of that."""
    way = records.read_json(other / "ratings.json").get("shown", SLICES)
    if (shown, way) != (SLICES, WHOLE):
        raise UserError(
            f"unsliced: the judges of {other} saw {way}, those of this run {shown}; expected {WHOLE} there (sliced: "
            f"false) and {SLICES} here"
        )
    found = _of_same_sessions(battles, other / "battles.jsonl")
    models = [[but_for_seed(j).model for j in _judges(b[0])] for b in (found, battles)]
    if models[0] != models[1]:
        raise UserError(
            f"unsliced: {other} was judged by {'; '.join(models[0])}, this run by {'; '.join(models[1])}; what slices "
            "change shows with the same models alone"
        )
    return found


def _judges(battle: Battle) -> list[JudgeIdentity]:
    """The judge, or each of those that voted."""
    return [v.judge for v in battle.votes] or [battle.judge]


def _told(judges: Sequence[JudgeIdentity]) -> str:
    return "; ".join(f"{j.name} ({j.model}, prompt {j.prompt_hash}, rubric {j.rubric_version})" for j in judges)


def _of_same_sessions(battles: Sequence[Battle], path: Path) -> list[Battle]:
    """Another run's battles between sessions that met in this one, too."""
    met = {frozenset((b.session_a, b.session_b)) for b in battles}
    found = [b for b in read_battles(path) if frozenset((b.session_a, b.session_b)) in met]
    if not found:
        raise UserError(f"{path}: no two sessions that met here met there; expected a run over the same sessions.jsonl")
    return found


def _convergence(
    battles: Sequence[Battle], ranking: Sequence[str], board: Mapping[str, Any], seed: int
) -> dict[str, list[Row]]:
    own, ties = board.get("pairing", "swiss"), board.get("ties", {}).get("model", "half")
    designs = {own: convergence.rounds_of(battles)}
    if convergence.everybody_met(battles):
        others = (name for name in get_args(PairingName) if name != own)
        designs |= {name: convergence.replay(name, battles, seed) for name in others}
    by_round, agreement = [], []
    for design, rounds in designs.items():
        by_round += convergence.ratings_by_round(design, rounds, ranking, seed, ties)
        agreement += convergence.agreement_by_round(design, rounds, battles, ranking, seed, ties)
    return {"ratings_by_round": by_round, "agreement_by_round": agreement}


def not_in_records(
    tables: Mapping[str, Sequence[Row]], battles: Sequence[Battle], coefficients: Sequence[Row]
) -> dict[str, str]:
    """What the tables lack, and why, in a sentence each."""
    found = {} if tables["experts"] else {"experts": EXPERTS}
    order_free = battles[0].judge.order_free
    if not tables["before_after"]:
        found["before_after"] = f"before and after (Figure 3): {HELDOUT} is not there; stage heldout writes it"
    if not convergence.everybody_met(battles):
        found["round_robin"] = (
            "convergence against round robin (Figure 4): not every pair of contestants has a judged match, so the "
            "rounds are compared with the run's own last ranking; a run with pairing=round_robin has both"
        )
    ways = {row["shown"] for row in tables["position_bias"]}
    if not ways:
        why = ORDER_FREE if order_free else "no match was judged in both orders"
        found["position_bias"] = f"position bias and order consistency (Figures 5 and 8): {why}"
    elif SLICES not in ways:
        found["sliced"] = "position bias after slicing (Figure 5): this run's judges saw whole sessions"
    if not any(WHOLE in way for way in ways) and not order_free:
        found["unsliced"] = "position bias before slicing (Figure 5): needs a run whose judge saw whole sessions"
    if not tables["repetition"]:
        why = ORDER_FREE if order_free else "needs a second run of the same judge over the same sessions"
        found["repetition"] = f"repetition stability: {why}"
    elif tables["repetition"][0]["seeds"] == 1 and any(but_for_seed(j) != j for j in _judges(battles[0])):
        found["repetition"] = (
            "repetition stability: every run asked with the same seed, and a server that honours it repeats itself "
            "word by word; a run whose judges have another seed says more"
        )
    dropped = sorted(set(length_control.STYLE) - {row["feature"] for row in coefficients})
    if dropped:
        found["style"] = (
            f"control for {', '.join(dropped)}: varies not, or hardly, within contestants, so it cannot be told from "
            "who speaks"
        )
    return found


def not_bounded(graph: Mapping[str, str], rates: Sequence[Row]) -> dict[str, str]:
    """What intervals over clients cannot bound, because no client says otherwise, in a sentence each."""
    found, flagged = {}, [f"{m} ({graph[m]})" for m in ratings.COLUMNS if graph.get(m, "ok") != "ok"]
    if flagged:
        found["graph"] = f"an end of the ratings of {', '.join(flagged)}: only the weak prior keeps these finite"
    certain = sorted({r["contestant"] for r in rates if r["high"] - r["low"] < NO_WIDTH})
    if certain or graph.get("overall", "ok") != "ok":
        found["agreement"] = (
            "how sure the win rates at equal length and style are where all clients agree: their intervals, unlike the "
            "ratings', hold only what clients differ in"
        )
        if certain:
            found["agreement"] += f"; those of {', '.join(certain)} have no width, which is no certainty"
    return found


def write(found: Mapping[str, Any], run_dir: Path) -> None:
    """Tables, figures, the page and analysis.json, which is last."""
    from tournament import figures

    folder = run_dir / "analysis"
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.png"), *folder.glob("*.csv")):  # of an earlier analysis
        old.unlink()
    for name, rows in found["tables"].items():
        if rows:
            text = io.StringIO()
            table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
            records.write_atomic(folder / f"{name}.csv", text.getvalue())
    drawn = figures.draw(found["tables"], found["ranking"], folder)
    page = analysis_page.compose(run_dir.resolve().name, found, folder, unverified_clients(run_dir))
    records.write_atomic(folder / analysis_page.PAGE, page)
    records.write_json(folder / "analysis.json", {**found, "figures": drawn})
