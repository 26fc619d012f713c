"""Sessions and pairs as tensors: what one training step, or one evaluated client, works on.

A client's sessions are encoded once and every pair of that client reads the rewards it needs, so the cost grows
with the number of sessions, not of comparisons (notes/reward-model.md). Sessions that differ in an asked last
reply alone, such as the two sides of an imported pair, share all that comes before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from psychepass.errors import UserError
from psychepass.schema import Dimension, PreferencePair, Session, Side
from reward_model.packing import Branch, Packed, Window, pack, windows
from training.render import Ids, Renderer


class Ask(NamedTuple):
    """One reward: a turn's reply on a dimension; with `reply` false the reply is left empty (context only)."""

    turn: int
    dimension: Dimension
    reply: bool = True


@dataclass
class Tally:
    """What was read of the sessions, and what was left out, for manifests and metrics.

    `windowed` of the `sessions` are longer than a window. `cut_replies` of the scored `replies` are read without the
    beginning of their history. `unread_turns` of the `turns` lie in no window: after the last scored one, or cut off.
    """

    sessions: int = 0
    windowed: int = 0
    turns: int = 0
    unread_turns: int = 0
    replies: int = 0
    cut_replies: int = 0

    def add(self, turns: int, found: Sequence[Window]) -> None:
        """A session of so many turns, in its windows."""
        read = {t for window in found for t in range(window.start, window.stop)}
        self.sessions += 1
        self.windowed += len(found) > 1 or any(window.start > 0 for window in found)
        self.turns += turns
        self.unread_turns += turns - len(read)
        self.replies += sum(len(window.scored) for window in found)
        self.cut_replies += sum(len(window.scored) for window in found if window.start > 0)

    def __str__(self) -> str:
        return (
            f"{self.windowed} of {self.sessions} sessions are longer than a window; {self.cut_replies} of "
            f"{self.replies} scored replies are read without the beginning of their history; {self.unread_turns} of "
            f"{self.turns} turns are not read"
        )


def encode_session(
    session: Session, asks: Sequence[Ask], renderer: Renderer, tally: Tally | None = None
) -> tuple[list[Packed], list[Ask]]:
    """The session's windows as trees, and the asks in the order of their scores; `tally` counts it.

    Raises:
        UserError: an ask for a turn that the session does not have, or a turn that alone is over the token budget.
    """
    lines = [renderer.client(t.client) for t in session.turns]
    turns = [line + renderer.therapist(t.therapist) for line, t in zip(lines, session.turns, strict=True)]
    index = {t.turn: i for i, t in enumerate(session.turns)}
    missing = [a.turn for a in asks if a.turn not in index]
    if missing:
        raise UserError(f"session {session.id}: no turn {missing[0]}")
    empty = renderer.therapist("")
    budget = renderer.max_trunk - len(renderer.head)
    for ask in asks:
        length = len(turns[index[ask.turn]])
        if length > budget:
            raise UserError(
                f"session {session.id}, turn {ask.turn}: client line and reply are {length} tokens; "
                f"max_length {renderer.max_tokens} leaves {budget} for one turn"
            )
    asks = sorted(asks, key=lambda ask: ask.turn)  # neighbours share a block of branches, which sees as little
    found = windows([len(t) for t in turns], [index[a.turn] for a in asks], budget)
    if tally:
        tally.add(len(turns), found)
    trees, order = [], []
    for window in found:
        starts = [len(renderer.head)]
        for turn in turns[window.start : window.stop]:
            starts.append(starts[-1] + len(turn))
        branches = []
        for ask in asks:
            i = index[ask.turn]
            if i not in window.scored:
                continue
            start, suffix = starts[i - window.start], renderer.dimension(ask.dimension)
            if ask.reply:
                branches.append(Branch(suffix, attach=start + len(turns[i])))
            else:
                branches.append(Branch(empty + suffix, attach=start + len(lines[i])))
            order.append(ask)
        trees.append(pack(sum(turns[window.start : window.stop], renderer.head), branches))
    return trees, order


def encode(
    asks: Mapping[str, Iterable[Ask]],
    sessions: Mapping[str, Session],
    renderer: Renderer,
    tally: Tally | None = None,
) -> Iterator[tuple[list[Packed], list[tuple[str, Ask]]]]:
    """Trees of all the sessions (by id) that are asked about, and each reward's session and ask, in order; `tally`
    counts them.

    Raises:
        UserError: as encode_session.
    """
    alike: dict[object, list[str]] = defaultdict(list)
    for name in sorted(asks):
        alike[_history(sessions[name], asks[name]) or name].append(name)
    for names in alike.values():
        together = _together([sessions[n] for n in names], asks, renderer) if len(names) > 1 else None
        if together:
            if tally:
                for last in (len(sessions[name].turns) for name in names):
                    tally.add(last, [Window(0, last, (last - 1,))])
            yield together
            continue
        for name in names:
            trees, order = encode_session(sessions[name], list(asks[name]), renderer, tally)
            yield trees, [(name, ask) for ask in order]


def _history(session: Session, asks: Iterable[Ask]) -> tuple[str, ...]:
    """What was said before the last reply, if nothing but that reply is asked about; else empty."""
    *before, last = session.turns
    if any(ask.turn != last.turn for ask in asks):
        return ()
    return (*(text for turn in before for text in (turn.client, turn.therapist)), last.client)


def _together(
    sessions: Sequence[Session], asks: Mapping[str, Iterable[Ask]], renderer: Renderer
) -> tuple[list[Packed], list[tuple[str, Ask]]] | None:
    """Sessions with one history as one tree, a branch a reply; None where a session is longer than a window.

    Equal replies, such as the deleted ones, are one branch: their rewards are then equal to the last bit, a tie.
    """
    trunk = renderer.head
    for turn in sessions[0].turns[:-1]:
        trunk += renderer.client(turn.client) + renderer.therapist(turn.therapist)
    trunk += renderer.client(sessions[0].turns[-1].client)
    asked = [(session, ask) for session in sessions for ask in asks[session.id]]
    replies = [renderer.therapist(session.turns[-1].therapist if ask.reply else "") for session, ask in asked]
    if len(trunk) + max(map(len, replies)) > renderer.max_trunk:
        return None
    dimensions: dict[Ids, dict[Dimension, None]] = defaultdict(dict)
    for ids, (_, ask) in zip(replies, asked, strict=True):
        dimensions[ids][ask.dimension] = None
    branches = [Branch(ids, len(trunk), tuple(map(renderer.dimension, of))) for ids, of in dimensions.items()]
    place = {key: n for n, key in enumerate((ids, d) for ids, of in dimensions.items() for d in of)}
    tree = pack(trunk, branches)
    read = [place[ids, ask.dimension] for ids, (_, ask) in zip(replies, asked, strict=True)]
    tree = replace(tree, score_index_S=tree.score_index_S[read])
    return [tree], [(session.id, ask) for session, ask in asked]


@dataclass(frozen=True)
class ClientStep:
    """One client's trees and pairs. A row of `chosen_PS` holds 1/n at the n rewards of that side, else 0.

    `dimensions` are the pairs' own, for the training curves.
    """

    profile_id: str
    trees: tuple[Packed, ...]
    chosen_PS: torch.Tensor
    rejected_PS: torch.Tensor
    weight_P: torch.Tensor
    dimensions: tuple[Dimension, ...]

    @property
    def tokens(self) -> int:
        return sum(t.tokens for t in self.trees)


def client_steps(
    pairs: Iterable[PreferencePair], sessions: Mapping[str, Session], renderer: Renderer, tally: Tally | None = None
) -> list[ClientStep]:
    """A step for each client that has pairs, by profile id; `tally` counts what they read."""
    by_client: dict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        by_client[pair.profile_id].append(pair)
    return [_step(profile, by_client[profile], sessions, renderer, tally) for profile in sorted(by_client)]


def _step(
    profile_id: str,
    pairs: list[PreferencePair],
    sessions: Mapping[str, Session],
    renderer: Renderer,
    tally: Tally | None,
) -> ClientStep:
    asks: dict[str, dict[Ask, None]] = defaultdict(dict)
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            asks[side.session] |= dict.fromkeys(Ask(t, pair.dimension) for t in side.turns)
    trees: list[Packed] = []
    slot: dict[tuple[str, Ask], int] = {}
    for encoded, order in encode(asks, sessions, renderer, tally):
        trees += encoded
        slot |= {asked: len(slot) + i for i, asked in enumerate(order)}

    def rows(sides: list[tuple[Side, Dimension]]) -> torch.Tensor:
        matrix_PS = torch.zeros(len(sides), len(slot))
        for row, (side, dimension) in zip(matrix_PS, sides, strict=True):
            for turn in side.turns:
                row[slot[side.session, Ask(turn, dimension)]] = 1 / len(side.turns)
        return matrix_PS

    return ClientStep(
        profile_id=profile_id,
        trees=tuple(trees),
        chosen_PS=rows([(p.chosen, p.dimension) for p in pairs]),
        rejected_PS=rows([(p.rejected, p.dimension) for p in pairs]),
        weight_P=torch.tensor([p.weight for p in pairs]),
        dimensions=tuple(p.dimension for p in pairs),
    )


def join(steps: Sequence[ClientStep]) -> ClientStep:
    """Several clients as one step: one loss over all their pairs, so that a pair's weight is global."""
    return ClientStep(
        profile_id="+".join(s.profile_id for s in steps),
        trees=tuple(t for s in steps for t in s.trees),
        chosen_PS=torch.block_diag(*(s.chosen_PS for s in steps)),
        rejected_PS=torch.block_diag(*(s.rejected_PS for s in steps)),
        weight_P=torch.cat([s.weight_P for s in steps]),
        dimensions=tuple(d for s in steps for d in s.dimensions),
    )
