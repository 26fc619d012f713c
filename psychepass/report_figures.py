"""The report's figures: each is drawn once, saved as PNG and set into the page as an SVG data URI.

Colours are Okabe and Ito's, which stay apart under colour blindness; marks differ in shape too. Figures are
narrow (about 480 CSS pixels at most), so that their labels stay readable on a phone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from psychepass import report_data
from psychepass.errors import UserError
from psychepass.schema import Dimension

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#007A5A", "#8A8F98", "#1F2430"
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": "#B5BAC2",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#E6E8EC",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "psychepass",  # the same figure gives the same bytes
    "figure.facecolor": "white",
}
RELIABILITY = "Share of preferences predicted right against the confidence of the prediction, by bin, with intervals"
Row = tuple[str, float, float | None, float | None]  # label, value, low, high


class Drawn(NamedTuple):
    """A figure as the page takes it; width and height in CSS pixels."""

    src: str
    alt: str
    width: int
    height: int


def draw(
    run_dir: Path,
    summary: Mapping[str, Any],
    ratings: Mapping[str, Any],
    accuracies: Sequence[tuple[str, Any]],
    calibration: Mapping[str, Any],
) -> tuple[dict[str, Drawn], list[Drawn]]:
    """Every figure of the report by name, and the training curves in order; PNGs go to <run>/figures."""
    with rc_context(STYLE):
        figures, curves = _figures(summary, ratings, accuracies), _curves(run_dir)
        figures["rm_reliability"] = (RELIABILITY, reliability(calibration))
        drawn = {
            name: save(figure, run_dir / "figures" / f"{name}.png", alt)
            for name, (alt, figure) in (figures | curves).items()
        }
    return {name: drawn[name] for name in figures}, [drawn[name] for name in curves]


def _figures(
    summary: Mapping[str, Any], ratings: Mapping[str, Any], accuracies: Sequence[tuple[str, Any]]
) -> dict[str, tuple[str, Figure]]:
    """name -> (alternative text, figure)."""
    clients = summary["reward"]["clients"]
    figures = {
        "before_after": forest(
            {"judge": _scores(summary), "shadow judge": _scores(summary["shadow"])},
            "win score of the aligned policy",
            limits=(-1.05, 1.05),
        ),
        "reward_clients": slopes(
            [(c, v["before"], v["after"]) for c, v in sorted(clients.items())], "mean reward on the same prompts"
        ),
        "leaderboard": forest(
            {"rating": [(r["contestant"], r["rating"], r["low"], r["high"]) for r in ratings["overall"]]},
            "rating (field mean 100)",
            zero=100.0,
        ),
        "rm_accuracy": forest(
            {"accuracy": [(label.split(": ")[-1], r["value"], r["low"], r["high"]) for label, r in accuracies]},
            "share of pairs ordered right",
            zero=0.5,
            limits=(0.0, 1.0),
        ),
    }
    alts = {
        "before_after": "Win scores with intervals by dimension, under the judge and the shadow judge",
        "reward_clients": "Mean reward of each held-out client before and after",
        "leaderboard": "Overall ratings of the contestants with intervals",
        "rm_accuracy": "Accuracy of the reward model and of its baselines with intervals",
    }
    return {name: (alts[name], figure) for name, figure in figures.items()}


def _scores(table: Mapping[str, Any]) -> list[Row]:
    rows = {"overall": table["overall"]} | {d.value: table["dimensions"][d.value] for d in Dimension}
    return [(report_data.LABELS[m], r["score"], r["low"], r["high"]) for m, r in rows.items()]


def _curves(run_dir: Path) -> dict[str, tuple[str, Figure]]:
    """The training curves: name -> (alternative text, figure).

    Raises:
        UserError: a log without the column drawn.
    """
    rm = run_dir / "reward_model" / "train_log.jsonl"
    grpo = run_dir / "grpo" / "metrics.jsonl"
    validated = run_dir / "grpo" / "validation.jsonl"

    def column(path: Path, key: str) -> tuple[list[float], list[float]]:
        rows = [r for r in report_data.read_lines(path) if r.get(key) is not None]
        if not rows:
            raise UserError(f"{path}: no line has {key!r}; permitted to be missing in some lines, not in all")
        return [r["step"] for r in rows], [r[key] for r in rows]

    reward = {"training prompts": column(grpo, "reward_mean")}
    if validated.is_file():
        reward["dev prompts"] = column(validated, "reward_mean")
    rounding = {"largest": column(grpo, "prob_diff_max"), "mean": column(grpo, "prob_diff_mean")}
    lines = {
        "rm_loss": ("Reward model: loss", {"loss": column(rm, "loss")}),
        "rm_accuracy_curve": ("Reward model: training accuracy", {"accuracy": column(rm, "accuracy")}),
        "grpo_reward": ("GRPO: mean reward", reward),
        "grpo_kl": ("GRPO: KL loss", {"kl": column(grpo, "kl_loss")}),
        "grpo_grad_norm": ("GRPO: gradient norm", {"norm": column(grpo, "grad_norm")}),
        "grpo_prob_diff": ("GRPO: |p rollout − p trainer|", rounding),
    }
    return {name: (f"{title} by step", curve(of_title, title)) for name, (title, of_title) in lines.items()}


def save(figure: Figure, path: Path, alt: str) -> Drawn:
    """Write the PNG; return the figure as an SVG data URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    svg = io.StringIO()
    figure.savefig(path, dpi=160, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue().encode()).decode()
    width_in, height_in = figure.get_size_inches()
    return Drawn(source, alt, round(96 * width_in), round(96 * height_in))


def forest(groups: dict[str, Sequence[Row]], xlabel: str, zero: float | None = 0.0, limits: Any = None) -> Figure:
    """Intervals by row; of up to three groups the rows carry the same labels, in the same order, top down.

    An end that is None is unbounded and reaches the edge of the plot.
    """
    labels = [row[0] for row in next(iter(groups.values()))]
    figure, ax = _axes(5.0, 0.95 + 0.34 * len(labels))
    marks = (("o", BLUE, 6.0), ("D", ORANGE, 5.0), ("s", GREY, 4.5))
    if limits:
        ax.set_xlim(*limits)
    if zero is not None:
        ax.axvline(zero, color=INK, linewidth=1, zorder=1)
    spread = 0.17 if len(groups) > 1 else 0.0
    for g, ((name, rows), (marker, colour, size)) in enumerate(zip(groups.items(), marks, strict=False)):
        y = [i + spread * (2 * g - len(groups) + 1) for i in range(len(rows))]
        left, right = ax.get_xlim()
        for at, (_, _value, low, high) in zip(y, rows, strict=True):
            ends = (left if low is None else low, right if high is None else high)
            ax.plot(ends, (at, at), color=colour, linewidth=2, alpha=0.75, solid_capstyle="round")
        ax.plot([r[1] for r in rows], y, marker, color=colour, markersize=size, label=name, linestyle="none")
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(xlabel)
    if len(groups) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(groups), handletextpad=0.2, borderpad=0)
    return figure


def slopes(rows: Sequence[tuple[str, float, float]], xlabel: str) -> Figure:
    """Before (hollow) and after (filled) of each client, joined by a line that shows the direction."""
    figure, ax = _axes(5.0, 1.0 + 0.3 * len(rows))
    for i, (_, before, after) in enumerate(rows):
        ax.plot((before, after), (i, i), color=BLUE if after >= before else ORANGE, linewidth=2, zorder=2)
    places = range(len(rows))
    hollow = {"markerfacecolor": "white", "markeredgecolor": INK, "markeredgewidth": 1.4}
    ax.plot([r[1] for r in rows], places, "o", label="base", linestyle="none", zorder=3, **hollow)
    ax.plot([r[2] for r in rows], places, "o", label="aligned", linestyle="none", color=INK, zorder=3)
    ax.set_yticks(places, [r[0] for r in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(xlabel)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, handletextpad=0.2, borderpad=0)
    return figure


def reliability(calibration: Mapping[str, Any]) -> Figure:
    """Share of pairs ordered right against stated confidence, a mark a bin; on the line, confidence is earned."""
    figure, ax = _axes(3.6, 3.3)
    rows = calibration["reliability"]
    ax.plot((0.5, 1), (0.5, 1), color=INK, linewidth=1, zorder=1)
    for row in rows:
        ax.plot((row["confidence"],) * 2, (row["low"], row["high"]), color=BLUE, linewidth=2, alpha=0.6)
    ax.plot([r["confidence"] for r in rows], [r["value"] for r in rows], "o", color=BLUE, markersize=6)
    ax.set_xlim(0.49, 1.01)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("confidence of the reward model")
    ax.set_ylabel("share ordered right")
    return figure


def save_reliability(calibration: Mapping[str, Any], path: Path) -> None:
    """The reliability diagram alone, for a run that has no report (yet)."""
    with rc_context(STYLE):
        save(reliability(calibration), path, RELIABILITY)


def curve(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> Figure:
    """Lines of (steps, values)."""
    figure, ax = _axes(3.6, 2.5)
    looks = ((BLUE, "o", "-"), (ORANGE, "D", "--"), (GREY, "s", ":"))
    for (name, (x, y)), (colour, marker, dash) in zip(lines.items(), looks, strict=False):
        ax.plot(x, y, dash, marker=marker if len(x) <= 40 else None, markersize=4, color=colour, label=name)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_title(title)
    ax.set_xlabel("step")
    if len(lines) > 1:
        figure.legend(loc="outside lower center", ncols=len(lines), fontsize=8.5)
    return figure


def _axes(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.subplots()
