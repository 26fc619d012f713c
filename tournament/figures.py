"""The analysis's figures, from the rows of its tables; the looks are the report's (psychepass/report_figures.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from psychepass import report_data, report_figures
from psychepass.report_figures import BLUE, GREEN, GREY, INK, ORANGE, STYLE, forest
from tournament import ratings
from tournament.match_tables import Row

DESIGNS = (("round_robin", INK, "s", "-"), ("swiss", BLUE, "o", "--"), ("adaptive", ORANGE, "D", ":"))
HUES = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#8C6D1F", GREY, INK)


def draw(tables: Mapping[str, Sequence[Row]], ranking: Sequence[str], folder: Path) -> list[str]:
    """Save each figure whose tables have rows as PNG; returns the file names."""
    makers: dict[str, tuple[str, Callable[[], Figure]]] = {
        "table2_leaderboard": ("leaderboard", lambda: leaderboard(tables["leaderboard"], ranking)),
        "figure3_before_after": ("before_after", lambda: before_after(tables["before_after"])),
        "figure4_ratings_by_round": ("ratings_by_round", lambda: rounds(tables["ratings_by_round"], ranking)),
        "figure4_agreement_by_round": ("agreement_by_round", lambda: agreement(tables["agreement_by_round"])),
        "figure5_position_bias": ("position_bias", lambda: bias(tables["position_bias"])),
        "figure6_one_sided": (
            "one_sided",
            lambda: pairs(tables["one_sided"], ranking, "battles won on all 12 dimensions"),
        ),
        "figure7_win_rates": ("win_rates", lambda: win_rates(tables["win_rates"], ranking)),
        "figure8_order_consistency": (
            "order_consistency",
            lambda: pairs(tables["order_consistency"], ranking, "the same verdict in both orders"),
        ),
        "experts": ("experts", lambda: experts(tables["experts"])),
        "repetition": (
            "repetition",
            lambda: shares(
                tables["repetition"], f"asked again, the same verdict (judge seeds: {tables['repetition'][0]['seeds']})"
            ),
        ),
        "controlled_win_rates": ("controlled_win_rates", lambda: controlled(tables["controlled_win_rates"], ranking)),
    }
    made = []
    with rc_context(STYLE):
        for name, (table, make) in makers.items():
            if tables[table]:
                make().savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
                made.append(f"{name}.png")
    return made


def _ends(row: Row, label: str) -> tuple[str, float, float | None, float | None]:
    return label, row["value"], row["low"], row["high"]


def _interval(row: Row) -> str:
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]".replace("-", "−")


def leaderboard(rows: Sequence[Row], ranking: Sequence[str]) -> Figure:
    """Ratings with their intervals, a panel a measure on common axes, best contestants on top."""
    across = 5
    down = -(-len(ratings.COLUMNS) // across)
    figure = Figure(figsize=(1.4 + 2.0 * across, down * (0.9 + 0.22 * len(ranking))), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, measure in zip(axes, ratings.COLUMNS, strict=False):
        own = {r["contestant"]: r for r in rows if r["measure"] == measure}
        found = [own[name] for name in ranking]
        ax.hlines(range(len(found)), [r["low"] for r in found], [r["high"] for r in found], color=BLUE, linewidth=2)
        ax.plot([r["value"] for r in found], range(len(found)), "o", color=BLUE, markersize=4)
        ax.axvline(ratings.BASELINE, color=INK, linewidth=0.8, zorder=1)
        ax.set_title(report_data.LABELS[measure])
    for ax in axes[len(ratings.COLUMNS) :]:
        ax.set_visible(False)
    axes[0].set_yticks(range(len(ranking)), ranking)
    axes[0].invert_yaxis()
    figure.supxlabel(f"rating with 95 % interval ({rows[0]['n']} clients)")
    return figure


def before_after(rows: Sequence[Row]) -> Figure:
    groups: dict[str, Sequence[report_figures.Row]] = {
        f"aligned {v}": [_ends(r, report_data.LABELS[r["measure"]]) for r in rows if r["verdict"] == v]
        for v in ("win", "loss")
    }
    return forest(groups, "share of battles, by client", zero=0.5, limits=(-0.03, 1.03))


def rounds(rows: Sequence[Row], ranking: Sequence[str]) -> Figure:
    """Rating against battles, a panel a design on common axes, a line a contestant."""
    designs = [d for d in DESIGNS if any(r["design"] == d[0] for r in rows)]
    figure = Figure(figsize=(1.8 + 3.0 * len(designs), 3.8), layout="constrained")
    axes = figure.subplots(1, len(designs), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (design, *_looks) in zip(axes, designs, strict=True):
        for k, name in enumerate(ranking):
            own = [r for r in rows if r["design"] == design and r["contestant"] == name]
            x, colour = [r["battles"] for r in own], HUES[k % len(HUES)]
            ax.fill_between(x, [r["low"] for r in own], [r["high"] for r in own], color=colour, alpha=0.10, linewidth=0)
            ax.plot(x, [r["value"] for r in own], "os^Dv<>P"[k % 8], ls="-", color=colour, markersize=4, label=name)
        ax.axhline(ratings.BASELINE, color=INK, linewidth=0.8, zorder=1)
        ax.set_title(design.replace("_", " "))
        ax.set_xlabel("battles a contestant")
    axes[0].set_ylabel("rating with 95 % interval")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title="best first")
    return figure


def agreement(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    ax = figure.subplots()
    for k, (design, colour, marker, dash) in enumerate(DESIGNS):
        own = [r for r in rows if r["design"] == design]
        if not own:
            continue
        x = [r["battles"] * (1 + 0.012 * k) for r in own]
        ax.vlines(x, [r["low"] for r in own], [r["high"] for r in own], color=colour, alpha=0.6, linewidth=2)
        label = f"{design.replace('_', ' ')} so far"
        ax.plot(x, [r["value"] for r in own], dash, marker=marker, color=colour, markersize=5, label=label)
    ax.axhline(0.9, color=GREY, linewidth=1, zorder=1)
    ax.set_ylim(min(0.0, *(r["low"] for r in rows)) - 0.03, 1.03)
    ax.set_xlabel("battles a contestant")
    ax.set_ylabel("Kendall's tau with the final ranking")
    ax.legend(loc="lower right")
    return figure


def bias(rows: Sequence[Row]) -> Figure:
    """A win, tie, loss of the side shown first, a bar a measure and a panel a way of showing."""
    shown = list(dict.fromkeys(r["shown"] for r in rows))
    figure = Figure(figsize=(1.3 + 3.5 * len(shown), 4.2), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for ax, way in zip(axes, shown, strict=True):
        left = np.zeros(len(ratings.COLUMNS))
        for verdict, colour in (("A", BLUE), ("tie", "#D5D8DE"), ("B", ORANGE)):
            own = {r["measure"]: r["value"] for r in rows if r["shown"] == way and r["verdict"] == verdict}
            widths = np.array([own[m] for m in ratings.COLUMNS])
            label = {"A": "shown first wins", "tie": "tie", "B": "shown second wins"}[verdict]
            bars = ax.barh(range(len(widths)), widths, left=left, color=colour, label=label, height=0.72)
            texts = [f"{100 * w:.0f}" if w >= 0.06 else "" for w in widths]
            ax.bar_label(bars, texts, label_type="center", fontsize=8, color=INK if verdict == "tie" else "white")
            left += widths
        ax.axvline(0.5, color=INK, linewidth=1)
        ax.set_xlim(0, 1)
        net = next(r for r in rows if r["shown"] == way and r["measure"] == "overall" and r["verdict"] == "A - B")
        ax.set_title(f"{way} ({net['n']} clients)\noverall: first - second {_interval(net)}")
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("share of battles")
    axes[0].set_yticks(range(len(ratings.COLUMNS)), [report_data.LABELS[m] for m in ratings.COLUMNS])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def pairs(rows: Sequence[Row], ranking: Sequence[str], title: str) -> Figure:
    """A cell a pair with its share and number of clients, best contestants first. Below the diagonal stage slices;
    above it whole sessions, where the rows have them."""
    share_NN, texts = _empty(len(ranking), len(ranking))
    place = {name: i for i, name in enumerate(ranking)}
    for row in rows:
        if row["of"] == "pair" and row["value"] is not None:
            i, j = place[row["first"]], place[row["second"]]
            i, j = (i, j) if row.get("shown") == "whole sessions" else (j, i)
            share_NN[i, j], texts[i][j] = row["value"], f"{row['value']:.2f}\nn {row['n']}"
    if any(row.get("shown") == "whole sessions" for row in rows):
        title += "\nbelow: stage slices; above: whole sessions"
    return _heat(share_NN, texts, ranking, ranking, title)


def win_rates(rows: Sequence[Row], ranking: Sequence[str]) -> Figure:
    share_NK, texts = _empty(len(ranking), len(ratings.COLUMNS))
    n = 0
    for row in rows:
        i, k = ranking.index(row["contestant"]), ratings.COLUMNS.index(row["measure"])
        n = max(n, row["n"])
        if row["value"] is not None:
            share_NK[i, k], texts[i][k] = row["value"], f"{row['value']:.2f}"
    return _heat(
        share_NK,
        texts,
        ranking,
        [report_data.LABELS[m] for m in ratings.COLUMNS],
        f"win rate, a tie is half ({n} clients)",
    )


def _empty(rows: int, columns: int) -> tuple[np.ndarray, list[list[str]]]:
    return np.full((rows, columns), np.nan), [[""] * columns for _ in range(rows)]


def _heat(
    values: np.ndarray, texts: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str], title: str
) -> Figure:
    figure = Figure(figsize=(1.9 + 0.56 * len(columns), 1.5 + 0.44 * len(rows)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, of_row in enumerate(texts):
        for j, text in enumerate(of_row):
            colour = "white" if values[i, j] > 0.6 else INK
            ax.text(j, i, text, ha="center", va="center", fontsize=7.5, color=colour)
    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.set_title(title)
    figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02).locator = MaxNLocator(5)
    return figure


def shares(rows: Sequence[Row], xlabel: str) -> Figure:
    ends = [_ends(r, report_data.LABELS[r["measure"]]) for r in rows]
    return forest({"share": ends}, xlabel, zero=None, limits=(-0.03, 1.03))


def controlled(rows: Sequence[Row], ranking: Sequence[str]) -> Figure:
    models = list(dict.fromkeys(r["model"] for r in rows))
    of = {(r["model"], r["contestant"]): r for r in rows}
    groups: dict[str, Sequence[report_figures.Row]] = {
        model: [_ends(of[model, name], name) for name in ranking] for model in models
    }
    return forest(groups, "win rate against the whole field, by what is held equal", zero=0.5, limits=(-0.03, 1.03))


def experts(rows: Sequence[Row]) -> Figure:
    """Kappa of the raters with the judge, and of the raters with one another, by stratum and dimension."""
    kappa = {(r["name"], r["between"]): r for r in rows if r["measure"] == "kappa" and r["value"] is not None}
    sides = {"raters and judge": "with the judge", "raters": "with one another (ceiling)"}
    names = [n for n in dict.fromkeys(r["name"] for r in rows) if all((n, side) in kappa for side in sides)]
    groups: dict[str, Sequence[report_figures.Row]] = {
        label: [_ends(kappa[n, side], f"{n} (n {kappa[n, side]['n']})") for n in names] for side, label in sides.items()
    }
    return forest(groups, "Cohen's kappa with 95 % interval (n clients)", limits=(-1.03, 1.03))


def save_experts(rows: Sequence[Row], path: Path) -> None:
    with rc_context(STYLE):
        experts(rows).savefig(path, dpi=160, metadata={"Software": None})
