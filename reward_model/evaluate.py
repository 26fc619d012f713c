"""Stage `rm-eval`: how often the reward model ranks a test client's pair as the judge did, beside its baselines.

Every share is client-weighted, with the interval of psychepass.stats over test clients. `n` counts pairs. A
reward model that only tells therapists apart would pass «better than 0.5», hence:
  longer_wins          the side with more words a reply
  which_therapist      the side whose therapist won more often on this dimension in the train pairs
  context_only         the same model, the reply deleted
  shuffled_dimensions  the same model, asked about another dimension
  same_family          the same model, on pairs of one family only (the same weights behind both sides)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import say, stage_run
from psychepass.schema import Dimension, PreferencePair, Session, Side
from psychepass.stats import share_interval

if TYPE_CHECKING:
    from reward_model.data import Ask

FOLDER = "reward_model"
Sessions = Mapping[str, Session]
Margin = Callable[[PreferencePair], float]  # above 0: the chosen side is ranked first; 0: undecided


class RMEvalConfig(StageConfig):
    """Nothing to choose: the run's model on the run's test clients."""


def main(config_path: str, overrides: list[str]) -> None:
    config = load(RMEvalConfig, config_path, overrides)
    run_dir = Path(config.run)
    folder = run_dir / FOLDER
    inputs = [run_dir / "pairs.jsonl", run_dir / "sessions.jsonl", folder / "reward_model.json"]
    with stage_run("rm-eval", config, inputs) as run:
        if run.done:
            return
        pairs = records.read(inputs[0], PreferencePair)
        test = [p for p in pairs if p.split == "test"]
        if not test:
            run.abandon()
            raise UserError(f"{inputs[0]}: no pair of a test client; rm-eval needs some")
        needed = {side.session for p in pairs for side in (p.chosen, p.rejected)}
        sessions = {s.id: s for s in records.iterate(inputs[1], Session) if s.id in needed}
        rewards, model = reward_pairs(folder, test, sessions)
        train = [p for p in pairs if p.split == "train"]
        metrics: dict[str, Any] = {"model": model, "split": "test"} | measure(test, train, sessions, rewards)
        records.write_json(folder / "metrics.json", metrics)
        run.note(accuracy=metrics["accuracy"], n=metrics["n"])
        low, high = metrics["accuracy_low"], metrics["accuracy_high"]
        say(
            f"rm-eval: accuracy {metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}] on {metrics['n']} pairs "
            f"of {metrics['n_clients']} test clients; the longer reply wins {metrics['longer_wins']['value']:.3f}"
        )


def reward_pairs(
    folder: Path, pairs: Sequence[PreferencePair], sessions: Sessions
) -> tuple[dict[tuple[str, Ask], float], str]:
    """Each reward that `measure` asks for, by session id and ask, and the model's id; a session is encoded once."""
    import torch
    from tqdm import tqdm

    from psychepass.matmul import fast_fp32
    from reward_model.data import Ask, encode_session
    from reward_model.model import load as load_model

    fast_fp32()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, renderer, card = load_model(folder, device)
    asks: dict[str, dict[Ask, None]] = defaultdict(dict)
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            for turn in side.turns:
                own, other = Ask(turn, pair.dimension), Ask(turn, other_dimension(pair.dimension))
                asks[side.session] |= dict.fromkeys((own, own._replace(reply=False), other))
    rewards: dict[tuple[str, Ask], float] = {}
    for session_id in tqdm(sorted(asks), desc="rm-eval", unit="session"):
        trees, order = encode_session(sessions[session_id], list(asks[session_id]), renderer)
        with torch.inference_mode():
            values = [v for tree in trees for v in model(tree.to(device)).tolist()]
        rewards |= {(session_id, ask): value for ask, value in zip(order, values, strict=True)}
    return rewards, card.model


def other_dimension(dimension: Dimension) -> Dimension:
    """The control's wrong question: five places on among the rewarded dimensions, so that none is its own."""
    from training.pairs import REWARDED

    return REWARDED[(REWARDED.index(dimension) + 5) % len(REWARDED)]


def measure(
    pairs: Sequence[PreferencePair],
    train: Iterable[PreferencePair],
    sessions: Sessions,
    rewards: Mapping[tuple[str, Ask], float],
) -> dict[str, Any]:
    """metrics.json without the model's id: the accuracies and baselines of the module's docstring."""
    from reward_model.data import Ask

    def margin(pair: PreferencePair, dimension: Dimension, reply: bool = True) -> float:
        def reward(side: Side) -> float:
            return sum(rewards[side.session, Ask(t, dimension, reply)] for t in side.turns) / len(side.turns)

        return reward(pair.chosen) - reward(pair.rejected)

    def model(pair: PreferencePair) -> float:
        return margin(pair, pair.dimension)

    family = {s: sessions[s].therapist.family for s in sessions}
    same_family = [p for p in pairs if family[p.chosen.session] == family[p.rejected.session]]
    longer, prior = longer_margin(sessions), therapist_margin(train, sessions)
    overall = accuracy(pairs, model)
    assert overall is not None
    return {
        "accuracy": overall["value"],
        "accuracy_low": overall["low"],
        "accuracy_high": overall["high"],
        "n": overall["n"],
        "n_clients": overall["n_clients"],
        "dimensions": {
            d.value: row for d in Dimension if (row := accuracy([p for p in pairs if p.dimension is d], model))
        },
        "longer_wins": accuracy(pairs, longer),
        "which_therapist": accuracy(pairs, prior),
        "context_only": accuracy(pairs, lambda p: margin(p, p.dimension, reply=False)),
        "shuffled_dimensions": accuracy(pairs, lambda p: margin(p, other_dimension(p.dimension))),
        "same_family": accuracy(same_family, model),
        "same_family_longer_wins": accuracy(same_family, longer),
    }


def accuracy(pairs: Iterable[PreferencePair], margin: Margin) -> dict[str, Any] | None:
    """Client-weighted share of pairs with a margin above 0 (0 counts half), with its interval; None without pairs."""
    by_client: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        value = margin(pair)
        by_client[pair.profile_id].append(1.0 if value > 0 else 0.5 if value == 0 else 0.0)
    if not by_client:
        return None
    shares = [sum(v) / len(v) for _, v in sorted(by_client.items())]
    interval = share_interval(shares)
    n_pairs = sum(len(v) for v in by_client.values())
    return {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": n_pairs,
        "n_clients": interval.n,
    }


def longer_margin(sessions: Sessions) -> Margin:
    """By mean words a reply over the side's turns."""

    def words(side: Side) -> float:
        replies = [t.therapist for t in sessions[side.session].turns if t.turn in side.turns]
        return sum(len(r.split()) for r in replies) / len(replies)

    return lambda pair: words(pair.chosen) - words(pair.rejected)


def therapist_margin(train: Iterable[PreferencePair], sessions: Sessions) -> Margin:
    """By each therapist's share of train pairs won on the dimension, with one win and one loss added."""
    won: dict[tuple[str, Dimension], list[int]] = defaultdict(lambda: [1, 1])
    for pair in train:
        for place, side in enumerate((pair.chosen, pair.rejected)):
            won[sessions[side.session].therapist.name, pair.dimension][place] += 1

    def share(side: Side, dimension: Dimension) -> float:
        wins, losses = won[sessions[side.session].therapist.name, dimension]
        return wins / (wins + losses)

    return lambda pair: share(pair.chosen, pair.dimension) - share(pair.rejected, pair.dimension)
