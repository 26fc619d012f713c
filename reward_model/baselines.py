"""Other forms of the reward model's work behind the same loss: small and readable, for tests and benchmarks.

A form turns one client's pairs into a ClientStep, as reward_model.data does; only its trees differ.
  naive            a sequence for every (pair side, turn, dimension), as a trainer of single pairs has it
  naive_once       the same, but each (session, turn, dimension) once
  one_level        a tree for each scored turn: its context and reply, then the dimensions as branches
  dimension_first  the dimension stands before the context: a trunk for each (session, dimension)
  twelve_outputs   a trunk a session and no question: DimensionHead has an output for each dimension
The first three give the rewards of reward_model.data up to rounding. The last two are other models: they read
another text, so their rewards differ, and their accuracy is to be compared on the same pairs. All use the same
windows of a long session.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import nn

from psychepass.schema import Dimension, PreferencePair, Session, Side
from reward_model.data import ClientStep
from reward_model.model import HEAD_STD, RewardModel
from reward_model.packing import Branch, Ids, Packed, pack, pack_sequence, windows
from training.render import Renderer

Sessions = Mapping[str, Session]
Form = Callable[[Sequence[PreferencePair], Sessions, Renderer], ClientStep]
Ask = tuple[str, int, Dimension]  # session, turn, dimension
Slot = Callable[[PreferencePair, Side, int], int]  # the place of the reward that a pair's side reads for a turn


class Stretch(NamedTuple):
    """A window of a session: its ids, and for each turn scored in it the number of ids up to its reply's end."""

    session: str
    ids: Ids
    ends: dict[int, int]


def stretches(pairs: Sequence[PreferencePair], sessions: Sessions, renderer: Renderer) -> list[Stretch]:
    """The windows of all sessions of the pairs, by session id, with the turns that any pair reads."""
    read: dict[str, set[int]] = defaultdict(set)
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            read[side.session] |= set(side.turns)
    return [s for name in sorted(read) for s in _session_stretches(sessions[name], read[name], renderer)]


def _session_stretches(session: Session, scored: set[int], renderer: Renderer) -> list[Stretch]:
    turns = [renderer.client(t.client) + renderer.therapist(t.therapist) for t in session.turns]
    places = [i for i, t in enumerate(session.turns) if t.turn in scored]
    found = []
    for window in windows([len(t) for t in turns], places, renderer.max_trunk - len(renderer.head)):
        ids, ends = renderer.head, {}
        for i in range(window.start, window.stop):
            ids += turns[i]
            if i in window.scored:
                ends[session.turns[i].turn] = len(ids)
        found.append(Stretch(session.id, ids, ends))
    return found


def naive(pairs: Sequence[PreferencePair], sessions: Sessions, renderer: Renderer) -> ClientStep:
    """Nothing is shared: a reward that two pairs read is computed twice."""
    text = _texts(stretches(pairs, sessions, renderer))
    trees = [
        pack_sequence(text[side.session, turn] + renderer.dimension(pair.dimension))
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
        for turn in side.turns
    ]
    place = count()
    return _step(pairs, trees, len(trees), lambda pair, side, turn: next(place))


def naive_once(pairs: Sequence[PreferencePair], sessions: Sessions, renderer: Renderer) -> ClientStep:
    """A sequence for each reward; pairs of one session share its rewards, and nothing else."""
    text = _texts(stretches(pairs, sessions, renderer))
    place = {ask: i for i, ask in enumerate(_asks(pairs))}
    trees = [pack_sequence(text[name, turn] + renderer.dimension(d)) for name, turn, d in place]
    return _step(pairs, trees, len(place), _by_ask(place))


def one_level(pairs: Sequence[PreferencePair], sessions: Sessions, renderer: Renderer) -> ClientStep:
    """The dimensions of a turn share its context and reply; two turns of a session share nothing."""
    asked: dict[tuple[str, int], list[Dimension]] = defaultdict(list)
    for name, turn, dimension in _asks(pairs):
        asked[name, turn].append(dimension)
    text = _texts(stretches(pairs, sessions, renderer))
    trees = [_asked(text[turn], [renderer.dimension(d) for d in asked[turn]]) for turn in asked]
    order = [(*turn, d) for turn, dimensions in asked.items() for d in dimensions]
    place = {ask: i for i, ask in enumerate(order)}
    return _step(pairs, trees, len(place), _by_ask(place))


def dimension_first(pairs: Sequence[PreferencePair], sessions: Sessions, renderer: Renderer) -> ClientStep:
    """Context and reply are read in the light of the dimension; only the turns of a session share a trunk."""
    asks = set(_asks(pairs))
    trees, place = [], {}
    for name, ids, ends in stretches(pairs, sessions, renderer):
        for dimension in Dimension:
            turns = [t for t in ends if (name, t, dimension) in asks]
            if not turns:
                continue
            n_head, question = len(renderer.head), renderer.dimension(dimension)
            asked = ids[:n_head] + question + ids[n_head : ends[turns[-1]]]
            trees.append(pack_sequence(asked, [ends[t] + len(question) - 1 for t in turns]))
            for turn in turns:
                place[name, turn, dimension] = len(place)
    return _step(pairs, trees, len(place), _by_ask(place))


def twelve_outputs(pairs: Sequence[PreferencePair], sessions: Sessions, renderer: Renderer) -> ClientStep:
    """For a model of `with_twelve_outputs`: each scored turn gives 12 rewards, in the order of Dimension."""
    trees, place = [], {}
    for name, ids, ends in stretches(pairs, sessions, renderer):
        trees.append(pack_sequence(ids, [end - 1 for end in ends.values() for _ in Dimension]))
        for turn in ends:
            for dimension in Dimension:
                place[name, turn, dimension] = len(place)
    return _step(pairs, trees, len(place), _by_ask(place))


class DimensionHead(nn.Linear):
    """Takes hidden states [S, H] in which each scored turn stands 12 times running; gives rewards [S, 1]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input[:: self.out_features]).reshape(-1, 1)


def with_twelve_outputs(model: RewardModel, seed: int) -> RewardModel:
    """The model's own backbone, not a copy, under a new DimensionHead. It is not for model.save."""
    weight = model.head.weight
    head = DimensionHead(weight.shape[1], len(Dimension), bias=False, dtype=weight.dtype)
    nn.init.normal_(head.weight, std=HEAD_STD, generator=torch.Generator().manual_seed(seed))
    return RewardModel(model.backbone, head.to(weight.device))


def steps(form: Form, pairs: Sequence[PreferencePair], sessions: Sessions, renderer: Renderer) -> list[ClientStep]:
    """A step for each client that has pairs, by profile id, as data.client_steps; for a PairTrainer."""
    by_client: dict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        by_client[pair.profile_id].append(pair)
    return [form(by_client[profile], sessions, renderer) for profile in sorted(by_client)]


def _texts(found: Sequence[Stretch]) -> dict[tuple[str, int], Ids]:
    """Context and reply of each scored (session, turn)."""
    return {(s.session, turn): s.ids[:end] for s in found for turn, end in s.ends.items()}


def _asks(pairs: Sequence[PreferencePair]) -> list[Ask]:
    """Each (session, turn, dimension) that the pairs read, once, in order of first use."""
    sides = [(side, p.dimension) for p in pairs for side in (p.chosen, p.rejected)]
    return list(dict.fromkeys((side.session, turn, d) for side, d in sides for turn in side.turns))


def _asked(text: Ids, questions: Sequence[Ids]) -> Packed:
    return pack(text, [Branch(q, attach=len(text)) for q in questions])


def _by_ask(place: Mapping[Ask, int]) -> Slot:
    return lambda pair, side, turn: place[side.session, turn, pair.dimension]


def _step(pairs: Sequence[PreferencePair], trees: Sequence[Packed], n_rewards: int, slot: Slot) -> ClientStep:
    """`slot` is called in the order of the pairs, chosen side first, turn by turn."""
    chosen_PS, rejected_PS = torch.zeros(2, len(pairs), n_rewards)
    for row, pair in enumerate(pairs):
        for matrix_PS, side in ((chosen_PS, pair.chosen), (rejected_PS, pair.rejected)):
            for turn in side.turns:
                matrix_PS[row, slot(pair, side, turn)] = 1 / len(side.turns)
    return ClientStep(
        profile_id=pairs[0].profile_id,
        trees=tuple(trees),
        chosen_PS=chosen_PS,
        rejected_PS=rejected_PS,
        weight_P=torch.tensor([p.weight for p in pairs]),
        dimensions=tuple(p.dimension for p in pairs),
    )
