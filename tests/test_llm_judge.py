"""LLM judges: what they are shown, asked again, and how several of them vote."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from psychepass.config import load
from psychepass.llm import ChatClient, Ledger
from psychepass.schema import Battle, Dimension, Failure, Identity, Session, Usage, Vote
from tests.conftest import ROOT
from tests.fault_server import ALWAYS, JUDGED, MODEL, Fault, FaultServer, served
from tests.judge_rig import judges, made_sessions
from tournament.llm_judge import JudgeEntry, JudgeReply, LLMJudge, is_final, judge_prompt
from tournament.panel import Panel, also_playing
from tournament.run import TournamentConfig
from tournament.slicing import present
from training.pairs import pairs_of

ENTRY = JudgeEntry.model_validate(judges("http://h/v1")[0])


def two_sessions() -> tuple[Session, Session]:
    _, sessions = made_sessions(1, 2)
    return sessions[0], sessions[1]


def entries(*names: str, **change: Any) -> list[JudgeEntry]:
    return [ENTRY.model_copy(update={"name": n, "seed": i, **change}) for i, n in enumerate(names)]


def said(judge: LLMJudge, a: Session, b: Session, winner: str, **by_key: str) -> list[JudgeReply]:
    text = json.dumps({k: {"winner": by_key.get(k, winner), "reason": f"{k}!"} for k in JUDGED})
    which = {"judge": judge.identity, "session_a": a.id, "session_b": b.id, "attempt": 0}
    return [JudgeReply(**which, text=text, usage=Usage(calls=1, cost_usd=0.5))]


# --- what it is shown ------------------------------------------------------------------------------


def test_the_prompt_holds_slices_criteria_and_form_and_no_names() -> None:
    a, b = two_sessions()
    prompt = judge_prompt(a, b)
    assert present(a, b) in prompt and "{" + "dialogues}" not in prompt and "c0" not in prompt
    assert all(f'"{key}": ' in prompt and (key == "overall" or f"\n{key} (" in prompt) for key in JUDGED)
    assert "diversity" not in prompt.lower()
    assert prompt.index("=== Therapist B, stage 1") < prompt.index("=== Therapist A, stage 2")


def test_a_judge_of_whole_sessions_is_another_judge() -> None:
    a, b = two_sessions()
    sliced, whole = (LLMJudge(ENTRY.model_copy(update={"sliced": s}), 0.05) for s in (True, False))
    assert sliced.identity.prompt_hash != whole.identity.prompt_hash
    (shown,), (by_stage,) = whole.messages(a, b), sliced.messages(a, b)
    assert present(a, b, sliced=False) in shown.content and "whole session of B" in shown.content
    assert "stages are shown in turn" not in shown.content and "stages are shown in turn" in by_stage.content


def test_what_looks_like_a_placeholder_in_a_reply_stays_as_it_was_said() -> None:
    a, b = two_sessions()
    turns = (a.turns[0].model_copy(update={"therapist": "{criteria} {output_format} \\1"}), *a.turns[1:])
    assert "{criteria} {output_format} \\1" in judge_prompt(a.model_copy(update={"turns": turns}), b)


def test_a_judge_that_is_asked_again_sees_its_reply_and_the_error() -> None:
    a, b = two_sessions()
    judge = LLMJudge(ENTRY, 0.05)
    first = said(judge, a, b, "A")[0]
    garbled = first.model_copy(update={"text": "A wins.", "fault": "it is not JSON"})
    prompt, reply, note = judge.messages(a, b, [garbled])
    assert (prompt.content, reply.content) == (judge_prompt(a, b), "A wins.")
    assert [m.role for m in (prompt, reply, note)] == ["user", "assistant", "user"]
    assert "could not be read: it is not JSON." in note.content
    (alone,) = judge.messages(a, b, [garbled.model_copy(update={"text": "", "fault": "there was no reply"})])
    assert alone.content.startswith(judge_prompt(a, b)) and "there was no reply" in alone.content


# --- asking ----------------------------------------------------------------------------------------


def ask(tmp_path: Path, server: FaultServer, **change: Any) -> list[JudgeReply]:
    a, b = two_sessions()

    async def all_asked(url: str) -> list[JudgeReply]:
        judge = LLMJudge(JudgeEntry.model_validate(judges(url)[0] | change), 0.05)
        found: list[JudgeReply] = []
        with Ledger(tmp_path / "ledger.jsonl") as ledger:
            async with ChatClient(judge.entry.endpoint, ledger) as client:
                while not is_final(found):
                    found.append(await judge.ask(client, a, b, found))
        return found

    with served(server) as url:
        return asyncio.run(all_asked(url))


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("cut-off text", "it was cut off at 512 tokens; it is not one JSON object and nothing else ("),
        ("empty", "there was no reply in it (empty)"),
        ("wrong role", "there was no reply in it (wrong role)"),
        ("thoughts only", "there was no reply in it (empty)"),
        ("all in thoughts", "there was no reply in it (empty)"),
    ],
)
def test_one_retry_with_the_error_then_a_failure(tmp_path: Path, kind: str, fault: str) -> None:
    server = FaultServer((Fault(kind, 1.0, ALWAYS),))
    replies = ask(tmp_path, server)
    assert [r.attempt for r in replies] == [0, 1] and all(r.fault.startswith(fault) for r in replies)
    again = server.bodies[1]["messages"]
    assert fault in again[-1]["content"] and (len(again) == 3) == (kind == "cut-off text")
    assert server.bodies[0]["seed"] != server.bodies[1]["seed"]
    a, b = two_sessions()
    panel = Panel([JudgeEntry.model_validate(judges("http://h/v1")[0])], 0.05)
    outcome = panel.outcome(a, b, 2, {"judge-0": replies})
    assert isinstance(outcome, Failure) and outcome.usage.calls == 2
    assert outcome.detail.startswith(f"round 2, client train-0, c0 and c1; judge-0: {fault}")


def test_a_prompt_too_long_for_the_judge_fails_at_once(tmp_path: Path) -> None:
    replies = ask(tmp_path, FaultServer(context_words=50))
    assert [r.fault for r in replies] == ["context overflow"]


def test_a_readable_reply_is_a_battle_with_diversity_computed(tmp_path: Path) -> None:
    server = FaultServer()
    (reply,) = ask(tmp_path, server)
    a, b = two_sessions()
    panel = Panel([ENTRY], 0.05)
    battle = panel.outcome(a, b, 1, {"judge-0": [reply]})
    assert isinstance(battle, Battle) and battle.judge == panel.identity and not battle.votes
    held = json.loads(reply.text)
    assert {k: battle.verdicts[Dimension(k)].winner for k in JUDGED if k != "overall"} == {
        k: v["winner"] for k, v in held.items() if k != "overall"
    }
    assert battle.overall.winner == held["overall"]["winner"] and battle.overall.reason == held["overall"]["reason"]
    assert battle.verdicts[Dimension.DIVERSITY].reason.startswith("computed: mean Distinct-1 and Distinct-2 0.")
    assert battle.usage == reply.usage and battle.usage.cost_usd > 0
    assert "votes" not in battle.model_dump() and "votes" not in battle.model_dump_json()


def test_the_verdict_on_diversity_is_the_margins() -> None:
    a, b = two_sessions()
    turns = tuple(t.model_copy(update={"therapist": "I see."}) for t in b.turns)
    poor = b.model_copy(update={"turns": turns})
    for tau, wide, other in ((0.05, "A", "B"), (1.0, "tie", "tie")):
        judge = LLMJudge(ENTRY, tau)
        assert judge.read(said(judge, a, poor, "B")[0], a, poor)[0][Dimension.DIVERSITY].winner == wide
        assert judge.read(said(judge, poor, a, "B")[0], poor, a)[0][Dimension.DIVERSITY].winner == other


# --- who it is -------------------------------------------------------------------------------------


def test_an_identity_changes_with_all_that_makes_the_verdicts() -> None:
    plain = LLMJudge(ENTRY, 0.05).identity
    other = ENTRY.endpoint.model_copy(update={"extra": {"reasoning_effort": "high"}})
    changed = [
        LLMJudge(ENTRY, 0.06).identity,
        LLMJudge(ENTRY.model_copy(update={"seed": 9}), 0.05).identity,
        LLMJudge(ENTRY.model_copy(update={"endpoint": other}), 0.05).identity,
        LLMJudge(
            ENTRY.model_copy(update={"sampling": ENTRY.sampling.model_copy(update={"temperature": 0.7})}), 0.05
        ).identity,
    ]
    assert plain not in changed and len({c.model_dump_json() for c in changed}) == 4
    assert "temperature 0, top_p 1, at most 512 tokens, seed 0" in plain.model and MODEL in plain.model
    cheaper = ENTRY.endpoint.model_copy(update={"max_concurrent": 3, "timeout_s": 9.0})
    assert LLMJudge(ENTRY.model_copy(update={"endpoint": cheaper}), 0.05).identity == plain


def test_prompt_and_criteria_are_part_of_the_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tournament import llm_judge

    plain = LLMJudge(ENTRY, 0.05).identity
    for name, field in (("judge.txt", "prompt_hash"), ("judge_retry.txt", "prompt_hash"), ("criteria.txt", "both")):
        for path in (ROOT / "tournament" / "prompts").iterdir():
            (tmp_path / path.name).write_text(path.read_text() + ("." if path.name == name else ""))
        monkeypatch.setattr(llm_judge, "PROMPTS", tmp_path)
        found = LLMJudge(ENTRY, 0.05).identity
        monkeypatch.undo()
        assert found.prompt_hash != plain.prompt_hash
        assert (found.rubric_version != plain.rubric_version) == (field == "both")


def test_a_judge_that_also_plays_is_named() -> None:
    (judge,) = Panel([ENTRY], 0.05).judges
    contestants = [
        Identity(name="kin", kind="local", family="made-up"),
        Identity(name="same", kind="endpoint", family="x", weights=f"{MODEL} at https://elsewhere/v1 +12ab"),
        Identity(name="both", kind="endpoint", family="made-up", weights=f"{MODEL} at http://h/v1"),
        Identity(name="longer", kind="endpoint", family="x", weights=f"{MODEL}-large at http://h/v1"),
        Identity(name="other", kind="rules", family="rules"),
    ]
    assert [(f["contestant"], f["same"]) for f in also_playing([judge], contestants)] == [
        ("kin", "family made-up"),
        ("same", f"model {MODEL}"),
        ("both", f"family made-up and model {MODEL}"),
    ]


# --- several judges --------------------------------------------------------------------------------


def votes_of(*winners: str) -> tuple[Battle, Panel]:
    a, b = two_sessions()
    panel = Panel(entries(*(f"j{i}" for i in range(len(winners)))), 0.05)
    heard = {j.entry.name: said(j, a, b, w) for j, w in zip(panel.judges, winners, strict=True)}
    battle = panel.outcome(a, b, 1, heard)
    assert isinstance(battle, Battle)
    return battle, panel


@pytest.mark.parametrize(
    ("winners", "verdict"),
    [
        (("A", "A", "B"), "A"),
        (("A", "B"), "tie"),
        (("A", "tie", "B"), "tie"),
        (("A", "tie", "tie"), "tie"),
        (("A", "A", "tie", "B"), "tie"),
        (("B", "B", "B", "tie"), "B"),
    ],
)
def test_more_than_half_decide_and_otherwise_it_is_a_tie(winners: tuple[str, ...], verdict: str) -> None:
    battle, panel = votes_of(*winners)
    assert battle.verdicts[Dimension.SKILL].winner == battle.overall.winner == verdict
    assert battle.overall.reason == "votes: " + ", ".join(f"j{i} {w}" for i, w in enumerate(winners))
    assert [v.overall.winner for v in battle.votes] == list(winners) and len(battle.votes) == len(winners)
    assert [v.judge for v in battle.votes] == [j.identity for j in panel.judges]
    assert battle.usage.cost_usd == 0.5 * len(winners)
    again = Battle.model_validate_json(battle.model_dump_json())
    assert again == battle and again.id == battle.id
    turned = battle.swapped()
    assert turned.swapped() == battle and [v.overall.winner for v in turned.votes] == [
        {"A": "B", "B": "A", "tie": "tie"}[w] for w in winners
    ]


def test_the_panel_fails_if_one_of_its_judges_does() -> None:
    a, b = two_sessions()
    panel = Panel(entries("one", "two"), 0.05)
    one, two = (said(j, a, b, "A") for j in panel.judges)
    broken = [r.model_copy(update={"attempt": i, "fault": f"fault {i}"}) for i, r in enumerate(two * 2)]
    assert panel.outcome(a, b, 1, {"one": one}) is None and panel.outcome(a, b, 1, {"one": one, "two": []}) is None
    assert panel.outcome(a, b, 1, {"one": one, "two": broken[:1]}) is None  # it is to be asked again
    outcome = panel.outcome(a, b, 1, {"one": one, "two": broken})
    assert isinstance(outcome, Failure) and "two: fault 0, then fault 1" in outcome.detail
    assert outcome.usage.cost_usd == 1.5


def test_a_panel_has_one_identity_whatever_the_order_of_its_entries() -> None:
    one, other = Panel(entries("x", "y"), 0.05), Panel(list(reversed(entries("x", "y"))), 0.05)
    assert one.identity == other.identity and one.identity.name == "panel of x, y"
    assert one.identity != Panel(entries("x", "y", "z"), 0.05).identity


def test_a_pair_weighs_the_share_of_the_panel_that_agreed_in_both_orders() -> None:
    """One judge for a in both orders; one for a, then for b; one for a in both: two of three."""
    a, b = two_sessions()
    panel = Panel(entries("j0", "j1", "j2"), 0.05)
    first = {j.entry.name: said(j, a, b, "A") for j in panel.judges}
    second = {j.entry.name: said(j, b, a, "A" if j.entry.name == "j1" else "B") for j in panel.judges}
    battles = [panel.outcome(a, b, 1, first), panel.outcome(b, a, 1, second)]
    assert all(isinstance(x, Battle) for x in battles)
    pairs = pairs_of([x for x in battles if isinstance(x, Battle)], {s.id: s for s in (a, b)})
    assert len(pairs) == 11 and {p.chosen.session for p in pairs} == {a.id}
    assert {p.weight for p in pairs} == {2 / 3} and all(len(p.battles) == 2 for p in pairs)


def test_a_vote_must_cover_all_dimensions() -> None:
    battle, _ = votes_of("A", "B")
    vote = battle.votes[0]
    less = Vote(judge=vote.judge, verdicts={Dimension.SKILL: vote.overall}, overall=vote.overall)
    with pytest.raises(ValueError, match="all 12 dimensions are required"):
        Battle.model_validate({**dict(battle), "votes": (less,)})


def test_the_shipped_configs_load() -> None:
    config = load(TournamentConfig, ROOT / "configs" / "tournament-llm.yaml")
    assert config.judges and Panel(config.judges, 0.05).identity.name and config.budget_usd
    assert not load(TournamentConfig, ROOT / "configs" / "tournament.yaml").judges
