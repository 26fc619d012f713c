"""Stage `rm-eval`: what the reward model is worth on the run's test clients. Writes reward_model/metrics.json.

  accuracy, its baselines and controls        reward_model/accuracy.py
  calibration, and figures/rm_reliability.png reward_model/calibration.py
  rank_agreement with the tournament          reward_model/agreement.py; null where the run has no ratings.json

Every number is {"value", "low", "high", "n", "n_clients"}; only the first accuracy is spelt out at the top.
`untrained` names dimensions, of test pairs or of rank_agreement (which reads all that are rewarded), that the model was
never trained on; null where its card does not say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import say, stage_run
from psychepass.schema import PreferencePair, Session
from psychepass.scoring import untrained
from reward_model.inputs import sessions_of
from training.pairs import REWARDED

if TYPE_CHECKING:
    from reward_model.data import Ask, Tally
    from reward_model.model import Card

FOLDER = "reward_model"
FIGURE = "rm_reliability"


class RMEvalConfig(StageConfig):
    """`model`: the folder of a saved reward model, null for the run's own."""

    model: str | None = None


def main(config_path: str, overrides: list[str]) -> None:
    config = load(RMEvalConfig, config_path, overrides)
    run_dir = Path(config.run)
    folder = Path(config.model) if config.model else run_dir / FOLDER
    inputs = [run_dir / "pairs.jsonl", run_dir / "sessions.jsonl", folder / "reward_model.json"]
    ratings = run_dir / "ratings.json"
    with stage_run("rm-eval", config, [*inputs, *([ratings] if ratings.is_file() else [])]) as run:
        if run.done:
            return
        try:
            metrics = evaluate(run_dir, folder)
        except UserError:
            run.abandon()
            raise
        records.write_json(run_dir / FOLDER / "metrics.json", metrics)
        draw(metrics, run_dir)
        run.note(accuracy=metrics["accuracy"], n=metrics["n"])
        low, high, ece = metrics["accuracy_low"], metrics["accuracy_high"], metrics["calibration"]["ece"]
        say(
            f"rm-eval: accuracy {metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}] on {metrics['n']} pairs "
            f"of {metrics['n_clients']} test clients; the longer reply wins {metrics['longer_wins']['value']:.3f}; "
            f"ECE {ece['value']:.3f} [{ece['low']:.3f}, {ece['high']:.3f}]"
        )


def evaluate(run_dir: Path, folder: Path) -> dict[str, Any]:
    """The content of metrics.json.

    Raises:
        UserError: no test pair, or what `sessions_of`, `encode_session` and the model's loader refuse.
    """
    from reward_model import accuracy, agreement, calibration
    from reward_model.data import Tally

    pairs = records.read(run_dir / "pairs.jsonl", PreferencePair)
    test = [p for p in pairs if p.split == "test"]
    if not test:
        raise UserError(f"{run_dir / 'pairs.jsonl'}: no pair of a test client; rm-eval needs some")
    ratings = overall_ratings(run_dir / "ratings.json")

    def rated(session: Session) -> bool:
        return session.split == "test" and session.therapist.name in ratings

    sessions = sessions_of(pairs, run_dir / "sessions.jsonl", also=rated)
    played = [s for s in sessions.values() if rated(s)]
    read = Tally()
    rewards, card = score_asks(folder, [accuracy.asks_of(test), agreement.asks_of(played)], sessions, read)
    say(f"rm-eval: {read}")
    unlearnt = untrained(card.dimensions, [*(p.dimension for p in test), *(REWARDED if played else ())])
    if unlearnt:
        say(f"rm-eval: {card.model} was never trained on {', '.join(unlearnt)}, which metrics.json reads")
    train = [p for p in pairs if p.split == "train"]
    return {
        "model": card.model,
        "untrained": unlearnt,
        "split": "test",
        "read": asdict(read),
        **accuracy.measure(test, train, sessions, rewards, left_out=left_out(folder)),
        "calibration": calibration.calibration(calibration.forecasts(test, accuracy.reward_margin(rewards))),
        "rank_agreement": agreement.rank_agreement(agreement.mean_rewards(played, rewards), ratings),
    }


def overall_ratings(path: Path) -> dict[str, float]:
    """contestant -> the tournament's overall rating; empty for a run without a tournament."""
    return {r["contestant"]: r["rating"] for r in records.read_json(path)["overall"]} if path.is_file() else {}


def left_out(folder: Path) -> str | None:
    """The therapist that stage rm kept from this model's training, by the manifest beside the model."""
    manifest = folder.parent / "manifests" / "rm.json"
    return records.read_json(manifest)["config"].get("leave_out") if manifest.is_file() else None


def score_asks(
    folder: Path,
    wanted: Sequence[Mapping[str, Mapping[Ask, None]]],
    sessions: Mapping[str, Session],
    read: Tally | None = None,
) -> tuple[dict[tuple[str, Ask], float], Card]:
    """Each reward asked for, by session id and ask, and the model's card; a session is encoded once, and counted.

    Raises:
        UserError: a reward that is not finite.
    """
    import torch
    from tqdm import tqdm

    from reward_model.data import encode
    from reward_model.model import load as load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, renderer, card = load_model(folder, device)
    asks: dict[str, dict[Ask, None]] = defaultdict(dict)
    for of_measure in wanted:
        for session_id, of_session in of_measure.items():
            asks[session_id] |= of_session
    rewards: dict[tuple[str, Ask], float] = {}
    bar = tqdm(total=len(asks), desc="rm-eval", unit="session")
    for trees, order in encode(asks, sessions, renderer, read):
        with torch.inference_mode():
            values_S = torch.cat([model(tree.to(device)) for tree in trees])
        if not torch.isfinite(values_S).all():
            raise UserError(f"model {card.model} gave session {order[0][0]} a reward that is not finite")
        rewards |= dict(zip(order, values_S.tolist(), strict=True))
        bar.update(len({name for name, _ in order}))
    bar.close()
    return rewards, card


def draw(metrics: Mapping[str, Any], run_dir: Path) -> None:
    """The reliability diagram as PNG, as the report shows it."""
    from psychepass import report_figures

    report_figures.save_reliability(metrics["calibration"], run_dir / "figures" / f"{FIGURE}.png")
