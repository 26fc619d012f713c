"""Layout of packed trees and windows by hand; groups and windows against the naive form (see test_exactness)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psychepass.schema import Dimension
from reward_model import attention, packing
from reward_model.data import Ask, Tally, encode_session
from reward_model.model import RewardModel, from_base
from reward_model.packing import Block, Branch, Packed, Window, block_mask, pack, pack_group, pack_sequence, windows
from tests.made import identity, session
from tests.tiny import tiny_model, tiny_tokenizer
from training.pairs import context_of
from training.render import Renderer

RENDER = Renderer(tiny_tokenizer(), 4096, 512)
SESSION = session("p1", identity("a"))
ASKS = [Ask(6, Dimension.CRISIS), Ask(2, Dimension.EMPATHY), Ask(2, Dimension.ENGAGEMENT), Ask(11, Dimension.EMPATHY)]


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def model(request, tmp_path_factory) -> RewardModel:
    """With a head that spreads rewards by about 0.5."""
    path = tiny_model(tmp_path_factory.mktemp("m"), request.param, layers=3, hidden=144, heads=9, kv_heads=3)
    built = from_base(Path(path), layers=2, seed=0).eval()
    torch.nn.init.normal_(built.head.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return built


def dense(packed: Packed) -> torch.Tensor:
    """The blocks' masks as one [B, T]."""
    mask_BT = torch.zeros(len(packed.seen_B), packed.tokens, dtype=torch.bool)
    for block in packed.blocks:
        rows, mask = mask_BT[block.start : block.stop], block_mask(packed, block)
        rows[:, : block.seen] = mask[:, : block.seen]
        rows[:, packed.trunk + block.start : packed.trunk + block.stop] = mask[:, block.seen :]
    return mask_BT


def test_layout_by_hand():
    packed = pack((1, 2, 3), [Branch((4, 5), attach=2, twigs=((6,), (7, 8))), Branch((9,), attach=3)])
    assert packed.input_ids_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert packed.position_ids_T.tolist() == [0, 1, 2, 2, 3, 4, 4, 5, 3]
    assert packed.seen_B.tolist() == [2, 2, 2, 2, 2, 3]
    assert packed.end_B.tolist() == [5, 5, 3, 5, 5, 6]
    assert packed.score_index_S.tolist() == [5, 7, 8]
    assert packed.blocks == (Block(0, 6, 3),) and (packed.trunk, packed.tokens) == (3, 9)
    assert dense(packed).int().tolist() == [
        [1, 1, 0, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0, 1, 1, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 1],
    ]


def test_blocks_by_hand(monkeypatch):
    monkeypatch.setattr(packing, "BLOCK", 3)
    branches = [Branch((0,), 2), Branch((0,), 1), Branch((0,), 4), Branch((0,) * 2, 3, ((0,) * 3,)), Branch((0,), 1)]
    assert pack((0,) * 4, branches).blocks == (Block(0, 3, 4), Block(3, 8, 3), Block(8, 9, 1))
    assert pack_sequence((1, 2)).blocks == ()


segments = st.integers(1, 9)


shapes_of_branches = st.lists(st.tuples(segments, segments, st.lists(segments, max_size=3)), min_size=1, max_size=6)


@given(st.integers(1, 12), shapes_of_branches, segments)
def test_both_masks_show_each_token_the_sequence_of_its_own(n_trunk, shapes, block):
    """Against trees walked token by token; `block` is the size of a block, so that there are one to many."""
    branches = [Branch((0,) * n, min(attach, n_trunk), tuple((0,) * t for t in twigs)) for n, attach, twigs in shapes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", block)
        packed = pack((0,) * n_trunk, branches)
    paths = []  # for each branch token, the tree's tokens before it and itself
    at = n_trunk
    for branch in branches:
        before = list(range(branch.attach))
        own = list(range(at, at + len(branch.ids)))
        at += len(own)
        paths += [[*before, *own[: i + 1]] for i in range(len(own))]
        for twig in branch.twigs:
            tokens = list(range(at, at + len(twig)))
            at += len(tokens)
            paths += [[*before, *own, *tokens[: i + 1]] for i in range(len(tokens))]
    want_BT = torch.zeros(len(paths), packed.tokens, dtype=torch.bool)
    for row, path in zip(want_BT, paths, strict=True):
        row[path] = True
    assert torch.equal(dense(packed), want_BT)
    assert packed.position_ids_T[n_trunk:].tolist() == [len(path) - 1 for path in paths]
    flex = attention.flex_mask(packed)
    query, key = torch.arange(flex.seq_lengths[0])[:, None], torch.arange(flex.seq_lengths[1])
    found = flex.mask_mod(torch.tensor(0), torch.tensor(0), query, key)
    assert torch.equal(found[: len(paths), : packed.tokens], want_BT)
    assert found.any(1).all() and not found[:, packed.tokens :].any()


@pytest.mark.parametrize("branch", [Branch((), 1), Branch((4,), 0), Branch((4,), 4), Branch((4,), 1, ((5,), ()))])
def test_a_branch_that_hangs_nowhere_is_refused(branch):
    with pytest.raises(ValueError, match="branch 0"):
        pack((1, 2, 3), [branch])
    with pytest.raises(ValueError, match="trunk is empty"):
        pack((), [Branch((1,), 1)])


def test_group_rewards_equal_the_naive_form_and_partial_groups_score_the_same(model):
    context = RENDER.context(context_of(SESSION, 5))
    replies = [RENDER.response(r) for r in ("You feel tired.", "", "What would help you tonight, do you think?")]
    suffixes = [RENDER.dimension(d) for d in (Dimension.TRAUMA, Dimension.EMPATHY)]
    with torch.no_grad():
        group = model(pack_group(context, replies, suffixes)).reshape(3, 2)
        single = torch.stack([torch.cat([model(pack_sequence(context + r + s)) for s in suffixes]) for r in replies])
        partial = model(pack_group(context, replies[1:2], suffixes[1:]))
    assert (group - single).abs().max() <= 2e-6
    assert (group[1, 1] - partial[0]).abs() <= 2e-6


def test_context_only_asks_about_an_empty_reply(model):
    ask = Ask(6, Dimension.CRISIS, reply=False)
    tree = encode_session(SESSION, [ask], RENDER)[0][0]
    single = pack_sequence(RENDER.sequence(context_of(SESSION, 6), "", Dimension.CRISIS))
    with torch.no_grad():
        assert (model(tree) - model(single)).abs().max() <= 2e-6


def test_windows_of_a_long_session_equal_the_naive_form_on_the_same_windows(model):
    render = Renderer(tiny_tokenizer(), 330, 100)
    asks = [Ask(t.turn, Dimension.EMPATHY) for t in SESSION.turns]
    trees, order = encode_session(SESSION, asks, render)
    assert len(trees) > 2 and sorted(order) == sorted(asks)
    assert max(tree.trunk for tree in trees) <= render.max_trunk
    lengths = [len(render.client(t.client) + render.therapist(t.therapist)) for t in SESSION.turns]
    start_of = {t: w.start for w in windows(lengths, range(11), render.max_trunk) for t in w.scored}
    with torch.no_grad():
        packed = torch.cat([model(tree) for tree in trees])
        for ask, reward in zip(order, packed, strict=True):
            window = context_of(SESSION, ask.turn)[2 * start_of[ask.turn - 1] :]
            ids = RENDER.sequence(window, SESSION.turns[ask.turn - 1].therapist, ask.dimension)
            assert abs(model(pack_sequence(ids))[0] - reward) <= 2e-6


def test_what_is_windowed_or_left_out_is_counted():
    """A session whole; in windows; and one of which only the last reply is asked, in a window that begins late."""
    asks = [Ask(t.turn, Dimension.EMPATHY) for t in SESSION.turns]
    found = []
    for render, of in ((RENDER, asks[:9]), (Renderer(tiny_tokenizer(), 330, 100), asks),
                       (Renderer(tiny_tokenizer(), 330, 100), asks[-1:])):  # fmt: skip
        found.append(Tally())
        encode_session(SESSION, of, render, found[-1])
    assert found[0] == Tally(sessions=1, windowed=0, turns=11, unread_turns=2, replies=9, cut_replies=0)
    lengths = [len(RENDER.client(t.client) + RENDER.therapist(t.therapist)) for t in SESSION.turns]
    parts = windows(lengths, range(11), 330 - (RENDER.max_tokens - RENDER.max_trunk))
    late = sum(len(w.scored) for w in parts if w.start)
    assert (
        found[1] == Tally(sessions=1, windowed=1, turns=11, unread_turns=0, replies=11, cut_replies=late) and late > 1
    )
    assert found[2].windowed == found[2].cut_replies == found[2].replies == 1 and found[2].unread_turns > 3
    assert "1 of 1 sessions are longer than a window; 1 of 1 scored replies" in str(found[2])


def test_windows_by_hand():
    assert windows([5, 5, 5], [0, 2], 15) == [Window(0, 3, (0, 2))]
    assert windows([5, 5, 5, 5], [1], 15) == [Window(0, 2, (1,))]
    assert windows([4, 4, 4, 4, 4], [0, 2, 4], 12) == [Window(0, 3, (0, 2)), Window(4, 5, (4,))]
    assert windows([2, 2, 2, 2, 2, 2], [1, 5], 8) == [Window(0, 2, (1,)), Window(4, 6, (5,))]
    with pytest.raises(ValueError, match="turn 1 has 9 tokens"):
        windows([1, 9], [1], 8)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(20, 60), st.data())
def test_windows_hold_each_scored_turn_once_within_the_budget(lengths, budget, data):
    scored = data.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=1))
    found = windows(lengths, sorted(scored), budget)
    assert [t for w in found for t in w.scored] == sorted(scored)
    for w in found:
        assert sum(lengths[w.start : w.stop]) <= budget
        assert all(w.start <= t < w.stop for t in w.scored)
    if sum(lengths[: max(scored) + 1]) <= budget:
        assert len(found) == 1 and found[0].start == 0
