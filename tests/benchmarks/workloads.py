"""What the reward model's benchmark works on: a client's tournament, and groups of replies; made-up words, real plan.

A client has the turns, phases and probes of a shipped full script (44 turns) and 12 sessions, whose lengths are
spread evenly from 45 % to 100 % of the longest: every line and reply of a session has about the same length, so
that windows and turns are ragged between sessions. Verdicts come from the Swiss pairing of tournament.swiss.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from psychepass.schema import Dimension, Identity, PreferencePair, Session, Side, Turn
from reward_model.data import ClientStep
from reward_model.packing import Branch, Ids, Packed, pack, pack_group, pack_sequence
from rollout_env.profiles import load_profiles
from rollout_env.script import build_script
from tests.made import CLIENT, TARGET_WORDS, WORDS
from tests.tiny import tiny_tokenizer
from tournament.swiss import Standings, pair, rounds_for
from training.pairs import REWARDED
from training.render import Renderer

CONTESTANTS = 12
SHORTEST = 0.45  # the shortest session's share of the longest one's tokens


def renderer(longest: int) -> Renderer:
    """For sessions of at most `longest` tokens, each of them one window."""
    return Renderer(tiny_tokenizer(), longest + 64, max_response=longest // 2)


def client(render: Renderer, longest: int, seed: int = 0) -> dict[str, Session]:
    """12 sessions of one client by id; the longest has at most `longest` tokens."""
    profile = next(iter(load_profiles().values()))
    plan = build_script(profile, "full").turns
    found = []
    for number in range(CONTESTANTS):
        share = SHORTEST + (1 - SHORTEST) * number / (CONTESTANTS - 1)
        rng = random.Random(f"{seed}/{number}")
        turns = []
        for t in plan:
            said = _words(render, share * longest / len(plan), rng)
            cut = rng.randint(0, len(said) // 2)
            line, reply = " ".join(said[:cut]), " ".join(said[cut:])
            turns.append(
                Turn(turn=t.turn, phase=t.phase, dimension=t.evaluator.dimension, client=line, therapist=reply)
            )
        name = f"contestant {number:02d}"
        found.append(
            Session(
                profile_id=profile.profile_id,
                script_id="benchmark",
                split="train",
                therapist=Identity(name=name, kind="local", family=name),
                client=CLIENT,
                target_words=TARGET_WORDS,
                seed=seed,
                turns=tuple(turns),
            )
        )
    return {s.id: s for s in found}


def _words(render: Renderer, tokens: float, rng: random.Random) -> list[str]:
    """Words that fill a turn of so many tokens with its two labels, or none where those alone fill it."""
    left = tokens - len(render.client("")) - len(render.therapist(""))
    said = []
    while left > 0:
        said.append(rng.choice(WORDS))
        left -= len(render.client(f"a {said[-1]}")) - len(render.client("a"))
    return said[:-1]


def swiss_pairs(
    sessions: Mapping[str, Session], retention: float, tournaments: int = 1, seed: int = 0
) -> list[PreferencePair]:
    """The verdicts of Swiss tournaments of 24 matches, 11 dimensions each; the share `retention` of them, drawn."""
    by_name = {s.therapist.name: s for s in sessions.values()}
    rng = random.Random(seed)
    found = []
    for tournament in range(tournaments):
        standings = Standings.of(by_name)
        for number in range(rounds_for(len(by_name))):
            for a, b in pair(standings, seed + tournament, "benchmark", number).pairs:
                standings.record(a, b, rng.choice((0.0, 0.5, 1.0)))
                match = (by_name[a], by_name[b])
                found += [_pair(match, d, f"{tournament}/{number}/{a}/{b}", rng) for d in REWARDED]
    kept = set(random.Random(seed).sample(range(len(found)), round(retention * len(found))))
    return [p for i, p in enumerate(found) if i in kept]


def _pair(match, dimension, battle: str, rng: random.Random) -> PreferencePair:
    chosen, rejected = rng.sample(match, 2)
    return PreferencePair(
        profile_id=chosen.profile_id,
        split="train",
        dimension=dimension,
        chosen=Side(session=chosen.id, turns=chosen.reply_turns(dimension)),
        rejected=Side(session=rejected.id, turns=rejected.reply_turns(dimension)),
        battles=(battle,),
    )


class Group(NamedTuple):
    """Replies to one context, each asked the same dimensions; the sizes are those of the notes, or scaled down."""

    context: Ids
    replies: Sequence[Ids]
    questions: Sequence[Ids]

    def ours(self) -> list[Packed]:
        return [pack_group(self.context, self.replies, self.questions)]

    def one_level(self) -> list[Packed]:
        """A tree a reply: its dimensions share context and reply; two replies share nothing."""
        texts = [self.context + reply for reply in self.replies]
        return [pack(t, [Branch(q, attach=len(t)) for q in self.questions]) for t in texts]

    def naive(self) -> list[Packed]:
        return [pack_sequence(self.context + reply + q) for reply in self.replies for q in self.questions]

    def step(self, trees: Sequence[Packed]) -> ClientStep:
        """The first reply is preferred to each other one, on every dimension."""
        n_replies, n_questions = len(self.replies), len(self.questions)
        reward_RDS = torch.eye(n_replies * n_questions).reshape(n_replies, n_questions, -1)
        chosen_RDS = reward_RDS[:1].expand(n_replies - 1, -1, -1)
        return ClientStep(
            profile_id="group",
            trees=tuple(trees),
            chosen_PS=chosen_RDS.flatten(0, 1),
            rejected_PS=reward_RDS[1:].flatten(0, 1),
            weight_P=torch.ones((n_replies - 1) * n_questions),
            dimensions=tuple(Dimension)[:n_questions] * (n_replies - 1),
        )


def group(replies: int, dimensions: int, context: int, reply: int, question: int = 8, seed: int = 0) -> Group:
    """Random ids; sizes in tokens."""
    rng = random.Random(seed)

    def ids(n: int) -> Ids:
        return tuple(rng.choices(range(3, 400), k=n))

    return Group(ids(context), [ids(reply) for _ in range(replies)], [ids(question) for _ in range(dimensions)])
