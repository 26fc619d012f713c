"""Battles and sessions become preference pairs (notes/protocol: Pairs, reward, RL prompts); pure functions.

On a dimension, a judge has decided where all its presentations of a match name the same winner: both orders,
or the one order that an order-free judge is counted for. A match becomes a pair where more judges decided for
one session than for the other; its weight is the share of the match's judges that did. The judges of a panel are
counted one by one, by their votes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from psychepass.errors import UserError
from psychepass.schema import Battle, Dimension, Message, PreferencePair, Session, Side
from training.render import conversation

REWARDED = tuple(d for d in Dimension if d is not Dimension.DIVERSITY)
PAIR_SPLITS = ("train", "test")


def pairs_of(battles: Iterable[Battle], sessions: Mapping[str, Session]) -> list[PreferencePair]:
    """Every pair that the battles support, sorted; the order of `battles` does not matter.

    `sessions` by id.

    Raises:
        UserError: a battle of another split than train or test, of an unknown session, of sessions with
            different scripts, or a dimension that a session was never probed for.
    """
    matches: dict[frozenset[str], list[Battle]] = defaultdict(list)
    for battle in battles:
        _check(battle, sessions)
        matches[frozenset((battle.session_a, battle.session_b))].append(battle)
    found = [p for match in matches.values() for d in REWARDED for p in _pair(match, d, sessions)]
    order = {d: i for i, d in enumerate(Dimension)}
    return sorted(
        found, key=lambda p: (p.profile_id, *sorted((p.chosen.session, p.rejected.session)), order[p.dimension])
    )


def _check(battle: Battle, sessions: Mapping[str, Session]) -> None:
    where = f"battle {battle.id} (profile {battle.profile_id})"
    if battle.split not in PAIR_SPLITS:
        raise UserError(f"{where} is of split {battle.split!r}; pairs are made of {' and '.join(PAIR_SPLITS)} only")
    sides = [battle.session_a, battle.session_b]
    unknown = [s for s in sides if s not in sessions]
    if unknown:
        raise UserError(f"{where} names session {unknown[0]}, which is not among the {len(sessions)} sessions")
    scripts = {sessions[s].script_id for s in sides}
    profiles = {sessions[s].profile_id for s in sides}
    if len(scripts) > 1 or profiles != {battle.profile_id}:
        raise UserError(f"{where} compares sessions of profiles {sorted(profiles)} and scripts {sorted(scripts)}")


def winner_by_judge(match: Sequence[Battle], dimension: Dimension) -> dict[str, str | None]:
    """Judge -> the session it decided for, or None: a tie, orders that disagree, or an order that is missing."""
    seen: dict[str, dict[tuple[str, str], str | None]] = defaultdict(dict)
    order_free: dict[str, bool] = {}
    for battle in match:
        sides = {"A": battle.session_a, "B": battle.session_b, "tie": None}
        order = (battle.session_a, battle.session_b)
        for vote in battle.votes or (battle,):
            judge = f"{vote.judge.name}/{vote.judge.model}/{vote.judge.rubric_version}/{vote.judge.prompt_hash}"
            seen[judge][order] = sides[vote.verdicts[dimension].winner]
            order_free[judge] = vote.judge.order_free
    decided: dict[str, str | None] = {}
    for judge, winners in seen.items():
        complete = len(winners) == 2 or order_free[judge]
        agreed = set(winners.values())
        decided[judge] = agreed.pop() if complete and len(agreed) == 1 else None
    return decided


def _pair(match: list[Battle], dimension: Dimension, sessions: Mapping[str, Session]) -> Iterator[PreferencePair]:
    decided = winner_by_judge(match, dimension)
    votes = Counter(w for w in decided.values() if w is not None)
    first = match[0]
    a, b = sorted((first.session_a, first.session_b))
    if votes[a] == votes[b]:
        return
    chosen, rejected = (a, b) if votes[a] > votes[b] else (b, a)
    yield PreferencePair(
        profile_id=first.profile_id,
        split=first.split,
        dimension=dimension,
        chosen=_side(sessions[chosen], dimension),
        rejected=_side(sessions[rejected], dimension),
        battles=tuple(sorted(b.id for b in match)),
        weight=votes[chosen] / len(decided),
    )


def _side(session: Session, dimension: Dimension) -> Side:
    turns = session.reply_turns(dimension)
    if not turns:
        raise UserError(f"session {session.id}: no turn probes {dimension.value}, so no reply stands for it")
    return Side(session=session.id, turns=turns)


def context_of(session: Session, turn: int) -> tuple[Message, ...]:
    """The conversation before the reply of dialogue turn `turn`: it ends with that turn's client line."""
    messages: list[Message] = []
    for t in session.turns:
        messages.append(Message(role="user", content=t.client))
        if t.turn == turn:
            return tuple(messages)
        messages.append(Message(role="assistant", content=t.therapist))
    raise UserError(f"session {session.id}: no turn {turn}; it has turns 1 to {session.turns[-1].turn}")


def preference_rows(pairs: Iterable[PreferencePair], sessions: Mapping[str, Session]) -> Iterator[dict]:
    """Pairs as conversational chosen/rejected rows, for `datasets.Dataset.from_generator` and TRL.

    One row a turn of a pair, since such trainers compare single replies (ours compares the mean over a
    side's turns); `weight` is shared out over a pair's rows. Each side keeps its own history.
    """
    for pair in pairs:
        if len(pair.chosen.turns) != len(pair.rejected.turns):
            raise UserError(
                f"pair {pair.id}: {len(pair.chosen.turns)} turns chosen, {len(pair.rejected.turns)} rejected"
            )
        for chosen, rejected in zip(pair.chosen.turns, pair.rejected.turns, strict=True):
            yield {
                "chosen": _said(sessions[pair.chosen.session], chosen, pair.dimension),
                "rejected": _said(sessions[pair.rejected.session], rejected, pair.dimension),
                "dimension": pair.dimension.value,
                "weight": pair.weight / len(pair.chosen.turns),
                "pair": pair.id,
            }


def _said(session: Session, turn: int, dimension: Dimension) -> list[dict[str, str]]:
    reply = next(t.therapist for t in session.turns if t.turn == turn)
    return conversation(context_of(session, turn), reply, dimension)
