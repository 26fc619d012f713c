"""How often a reward model ranks a pair as the judge did, beside what simpler rules reach; pure functions.

Every share is client-weighted, with the interval of psychepass.stats over clients; `n` counts pairs. A reward
model that only tells therapists apart would pass «better than 0.5», hence:
  longer_wins          the side with more words a reply
  which_therapist      the side whose therapist won more often on this dimension in the train pairs
  context_only         the same model, the reply deleted
  shuffled_dimensions  the same model, asked about another dimension
  same_family          the same model, on pairs of one family only (the same weights behind both sides)
  pairs_with           the same model, on the pairs in which a therapist takes part, for each of them. That is no
                       leave-one-out: the model was trained on that therapist too
  left_out             where it was not (`leave_out` of stage rm): on the pairs with that therapist or its family
Where the speakers are not known (imported pairs) the three that need them are null.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from psychepass.schema import Dimension, PreferencePair, Session, Side
from psychepass.stats import Interval, share_interval
from psychepass.words import word_count
from reward_model.data import Ask
from reward_model.inputs import family_of
from training.pairs import REWARDED

Sessions = Mapping[str, Session]
Rewards = Mapping[tuple[str, Ask], float]  # by session id and ask
Margin = Callable[[PreferencePair], float]  # above 0: the chosen side is ranked first; 0: undecided


def other_dimension(dimension: Dimension) -> Dimension:
    """The control's wrong question: five places on among the rewarded dimensions, so that none is its own."""
    return REWARDED[(REWARDED.index(dimension) + 5) % len(REWARDED)]


def asks_of(pairs: Iterable[PreferencePair]) -> dict[str, dict[Ask, None]]:
    """The rewards that `measure` reads, by session: the pair's own, without the reply, and the wrong question's."""
    asks: dict[str, dict[Ask, None]] = defaultdict(dict)
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            for turn in side.turns:
                own, other = Ask(turn, pair.dimension), Ask(turn, other_dimension(pair.dimension))
                asks[side.session] |= dict.fromkeys((own, own._replace(reply=False), other))
    return asks


def reward_margin(
    rewards: Rewards, reply: bool = True, question: Callable[[Dimension], Dimension] = lambda d: d
) -> Margin:
    """r(chosen) - r(rejected); a side's reward is the mean over its turns, asked about `question(dimension)`."""

    def reward(side: Side, dimension: Dimension) -> float:
        return sum(rewards[side.session, Ask(t, dimension, reply)] for t in side.turns) / len(side.turns)

    return lambda pair: reward(pair.chosen, question(pair.dimension)) - reward(pair.rejected, question(pair.dimension))


def measure(
    pairs: Sequence[PreferencePair],
    train: Iterable[PreferencePair],
    sessions: Sessions,
    rewards: Rewards,
    left_out: str | None = None,
) -> dict[str, Any]:
    """The accuracies and baselines of the module's docstring; `left_out`: who was kept from the training."""
    model, longer = reward_margin(rewards), longer_margin(sessions)
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
        "context_only": accuracy(pairs, reward_margin(rewards, reply=False)),
        "shuffled_dimensions": accuracy(pairs, reward_margin(rewards, question=other_dimension)),
        **_by_speaker(pairs, train, sessions, model, left_out),
    }


def _by_speaker(
    pairs: Sequence[PreferencePair],
    train: Iterable[PreferencePair],
    sessions: Sessions,
    model: Margin,
    left_out: str | None,
) -> dict[str, Any]:
    speaker = {s: sessions[s].therapist for p in pairs for s in (p.chosen.session, p.rejected.session)}
    names = sorted({s.name for s in speaker.values()})
    of = {session_id: s.name for session_id, s in speaker.items()}
    if len(names) == 1:
        return {"which_therapist": None, "same_family": None, "same_family_longer_wins": None, "pairs_with": {}}
    same_family = [p for p in pairs if speaker[p.chosen.session].family == speaker[p.rejected.session].family]
    found = {
        "which_therapist": accuracy(pairs, therapist_margin(train, sessions)),
        "same_family": accuracy(same_family, model),
        "same_family_longer_wins": accuracy(same_family, longer_margin(sessions)),
        "pairs_with": {
            name: accuracy([p for p in pairs if name in (of[p.chosen.session], of[p.rejected.session])], model)
            for name in names
        },
    }
    if left_out is not None:
        unseen = family_of(left_out, sessions)
        met = [p for p in pairs if unseen & {p.chosen.session, p.rejected.session}]
        found["left_out"] = {"therapist": left_out, "accuracy": accuracy(met, model)}
    return found


def accuracy(pairs: Iterable[PreferencePair], margin: Margin) -> dict[str, Any] | None:
    """Client-weighted share of pairs with a margin above 0 (0 counts half), with its interval; None without pairs."""
    by_client: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        by_client[pair.profile_id].append(correct(margin(pair)))
    if not by_client:
        return None
    shares = [sum(v) / len(v) for _, v in sorted(by_client.items())]
    return row_of(share_interval(shares), sum(len(v) for v in by_client.values()))


def correct(margin: float) -> float:
    """1 where the chosen side is ranked first, a half where the model does not decide."""
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def row_of(interval: Interval, n: int) -> dict[str, Any]:
    """An interval over clients as metrics.json has it: an end without bound is null, and `n` counts something else."""
    return interval.model_dump(mode="json") | {"n": n, "n_clients": interval.n}


def longer_margin(sessions: Sessions) -> Margin:
    """By mean words a reply over the side's turns."""

    def words(side: Side) -> float:
        replies = [t.therapist for t in sessions[side.session].turns if t.turn in side.turns]
        return sum(map(word_count, replies)) / len(replies)

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
