"""Which groups share a tree, and that they get there the rewards they get alone."""

from __future__ import annotations

import pytest
import torch

from psychepass.schema import Dimension, Message
from psychepass.scoring import ScoreGroup
from reward_model import batching
from reward_model import model as models
from reward_model.batching import Batcher, Overloaded
from reward_model.joining import Rendered, joinable, pack_groups, parted
from reward_model.packing import pack_group
from reward_model.scorer import GroupScorer
from tests.tiny import tiny_model, tiny_tokenizer
from training.render import Renderer


def rendered(*context: int, responses: int = 1) -> Rendered:
    return Rendered(context, tuple((50 + r, 99) for r in range(responses)), ((7, 8),))


def test_contexts_that_begin_each_other_share_a_tree_and_others_do_not() -> None:
    groups = [rendered(1, 2), rendered(1, 2), rendered(1, 3), rendered(1, 2, 3, 4), rendered(1, 2, 3), rendered(1)]
    assert joinable(groups, 100) == [0, 1, 3, 4], "the last has less than half the trunk to share"
    assert joinable(groups[2:], 100) == [0, 3]
    assert joinable(groups[3:], 100) == [0, 1]
    # the trunk grows from 2 tokens to 4 by the fourth; one of 5 would leave the first with less than half
    assert joinable([*groups[:4], rendered(1, 2, 3, 4, 5)], 100) == [0, 1, 3]


def test_a_tree_stays_within_the_models_length_unless_one_group_is_longer() -> None:
    groups = [rendered(1, 2, responses=2)] * 3  # 2 tokens of context, 8 of branches
    assert joinable(groups, 18) == [0, 1] and joinable(groups, 17) == [0] and joinable(groups, 1) == [0]


def test_a_tree_by_hand() -> None:
    """Trunk 1 2 3; the first group's reply 50 99 follows 1 2, its question 7 8; then the second's after 1 2 3."""
    tree = pack_groups([rendered(1, 2), rendered(1, 2, 3)])
    assert tree.input_ids_T.tolist() == [1, 2, 3, 50, 99, 7, 8, 50, 99, 7, 8]
    assert tree.position_ids_T.tolist() == [0, 1, 2, 2, 3, 4, 5, 3, 4, 5, 6]
    assert tree.score_index_S.tolist() == [6, 10]
    alone = pack_group((1, 2), ((50, 99),), ((7, 8),))
    assert torch.equal(pack_groups([rendered(1, 2)]).input_ids_T, alone.input_ids_T)
    assert parted([1.0, 2.0, 3.0], [rendered(1), rendered(1, responses=2)]) == [[[1.0]], [[2.0], [3.0]]]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> GroupScorer:
    model = models.from_base(tiny_model(tmp_path_factory.mktemp("joining")), 2, seed=0)
    return GroupScorer(model, Renderer(tiny_tokenizer(), 512, 64), "tiny-rm@0")


def session(turns: int, replies: int = 1) -> list[ScoreGroup]:
    """The turns of one session, each with other replies."""
    messages = [Message(role="user", content="I can't sleep.")]
    groups = []
    for turn in range(turns):
        responses = tuple(f"Reply {n} in turn {turn}." for n in range(replies))
        dimensions = (Dimension.EMPATHY, Dimension.CRISIS)[: 1 + turn % 2]
        groups.append(ScoreGroup(context=tuple(messages), responses=responses, dimensions=dimensions))
        messages += [Message(role="assistant", content=responses[0]), Message(role="user", content=f"Well, {turn}.")]
    return groups


def test_a_session_turn_by_turn_is_a_few_trees_with_the_rewards_of_each_turn_alone(
    scorer: GroupScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = session(6, replies=2)
    alone = [scorer.score([g])[0] for g in groups]
    passes: list[int] = []
    forward = scorer.model.forward
    monkeypatch.setattr(scorer.model, "forward", lambda tree: passes.append(tree.tokens) or forward(tree))
    together = scorer.score([*groups, session(1)[0]])
    assert len(passes) == 3, "each tree takes contexts up to twice as long as its first"
    for one, joined in zip([*alone, alone[0][:1]], together, strict=True):
        assert joined == [pytest.approx(row, abs=2e-6) for row in one[: len(joined)]]
    assert abs(alone[0][0][0] - alone[2][0][0]) > 1e-3, "a wrong context shows"


def test_what_waits_for_the_same_conversation_is_scored_in_one_pass(
    scorer: GroupScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three callers ask reply by reply about A while a pass is under way, and one about B between them."""
    a = session(1, replies=3)[0]
    b = ScoreGroup(
        context=(Message(role="user", content="Nobody asks."),), responses=("Who?",), dimensions=a.dimensions
    )
    single = [a.model_copy(update={"responses": (r,)}) for r in a.responses]
    expected = [row for [row] in (scorer.score([g])[0] for g in [single[0], b, *single[1:]])]
    order: list[int] = []
    score_tree = scorer.score_tree
    monkeypatch.setattr(scorer, "score_tree", lambda groups: order.append(len(groups)) or score_tree(groups))
    batcher = Batcher(scorer, 8)
    with scorer._lock:
        first = batcher.probe()
        while batcher.busy_s == 0:
            pass
        futures = [f for g in [single[0], b, *single[1:]] for f in batcher.submit([g])]
    found = [f.result(300)[0] for f in futures]
    assert first.result(300) and order == [1, 3, 1]
    assert found == [pytest.approx(row, abs=2e-6) for row in expected]
    batcher.close()


def test_a_fault_reaches_only_the_group_that_has_it(scorer: GroupScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = session(1)[0], session(1)[0].model_copy(update={"responses": ("Poison.",)})
    poison, score_tree = scorer.render(bad).responses[0], scorer.score_tree

    def break_on_poison(groups: list[Rendered]) -> list[list[list[float]]]:
        if any(poison in g.responses for g in groups):
            raise FloatingPointError("not finite")
        return score_tree(groups)

    monkeypatch.setattr(scorer, "score_tree", break_on_poison)
    batcher = Batcher(scorer, 8)
    one, other, third = batcher.submit([good, bad, good])
    assert one.result(300) == third.result(300)
    with pytest.raises(FloatingPointError):
        other.result(300)
    batcher.close()


def test_a_caller_that_left_is_not_scored_and_a_request_beyond_the_limit_is_refused_whole(scorer: GroupScorer) -> None:
    batcher = Batcher(scorer, 2)
    with scorer._lock:
        batcher.probe()
        while batcher.busy_s == 0:
            pass
        left, stays = batcher.submit(session(2))
        assert left.cancel()
        with pytest.raises(Overloaded, match="2 groups are waiting"):
            batcher.submit(session(1))
        assert batcher.waiting == 2
    assert stays.result(300) and left.cancelled()
    assert [f.result(300) for f in batcher.submit(session(3))], "an empty queue takes any request"
    batcher.close()


def test_an_error_of_the_accelerator_ends_the_process(scorer: GroupScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fail every later pass; the keeper starts a new process (tests/test_serve_restart.py)."""
    ended: list[int] = []

    def fail(_: object) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered", 700)

    def end(code: int) -> None:
        ended.append(code)
        raise SystemExit

    monkeypatch.setattr(scorer, "score_tree", fail)
    monkeypatch.setattr(batching.os, "_exit", end)
    batcher = Batcher(scorer, 8)
    with pytest.raises(SystemExit):
        batcher._score([batching._Waiting(scorer.render(batching.PROBE), batching.Future())])
    assert ended == [1]
    batcher.close()
