"""The prompt of a client that a model plays, what reaches whom, passive clients, and the count beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest

from psychepass import llm, records
from psychepass.errors import UserError
from psychepass.schema import ClientLine, Script, Session, Usage
from rollout_env.client import ClientEntry, LLMClient
from rollout_env.passive import kept_turns, minimal_turns
from rollout_env.profiles import load_profiles
from rollout_env.script import build_script
from tests.endpoint_rig import ROOT, contestants
from tests.fault_server import MODEL, FaultServer, digest, served
from tests.played_client import client, hold, is_client, obedient

PROFILE = load_profiles()["adaeze-nwosu"]
SCRIPT = build_script(PROFILE, "short")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(llm, "LONGEST_PAUSE_S", 0.05)


def played(script: Script = SCRIPT, mode: str = "active") -> LLMClient:
    return LLMClient(ClientEntry.model_validate(client("http://h/v1") | {"mode": mode}), PROFILE, script)


# --- what the client is shown ----------------------------------------------------------------------


def test_the_prompt_is_made_anew_for_every_turn_from_profile_phase_dimension_and_turn() -> None:
    prompts = {t.turn: played().prompt(t.turn) for t in SCRIPT.turns}
    assert len(set(prompts.values())) == len(SCRIPT.turns)
    for t in SCRIPT.turns:
        shown = prompts[t.turn]
        assert f"Turn {t.turn} of {len(SCRIPT.turns)}" in shown
        assert t.client.trigger in shown and t.client.theme in shown
        assert all(fact in shown for fact in (PROFILE.name, PROFILE.situation, PROFILE.occupation, t.client.emotion))
        assert "{" not in shown
    crisis = next(t.turn for t in SCRIPT.turns if t.evaluator.dimension == "crisis")
    other = SCRIPT.turns[crisis - 1].model_copy(update={"evaluator": SCRIPT.turns[0].evaluator})
    turns = (*SCRIPT.turns[: crisis - 1], other, *SCRIPT.turns[crisis:])
    changed = played(SCRIPT.model_copy(update={"turns": turns})).prompt(crisis)
    lines = zip(changed.split("\n"), prompts[crisis].split("\n"), strict=True)
    assert sum(a != b for a, b in lines) == 1  # the dimension alone


def test_the_evaluator_layer_reaches_neither_side_and_the_client_layer_not_the_therapist(tmp_path: Path) -> None:
    evaluator = {"assesses": "SENTINEL", "targets": {"SENTINEL": ("SENTINEL",)}}
    turns = [
        t.model_copy(
            update={
                "evaluator": t.evaluator.model_copy(update=evaluator),
                "client": t.client.model_copy(
                    update={"theme": "INNER", "resistance": "INNER", "verbal_pattern": "INNER"}
                ),
            }
        )
        for t in SCRIPT.turns
    ]
    from rollout_env.session import simulate
    from rollout_env.therapist import TherapistEntry

    server = FaultServer(say=obedient)
    with served(server) as url:
        simulate(
            [SCRIPT.model_copy(update={"turns": tuple(turns)})],
            [TherapistEntry.model_validate(contestants(url, 1)[0])],
            [0],
            {PROFILE.profile_id: "train"},
            folder=tmp_path,
            target_words=30,
            sampling=played().sampling,
            client=ClientEntry.model_validate(client(url)),
            profiles={PROFILE.profile_id: PROFILE},
        )
    assert len(server.bodies) == 2 * len(SCRIPT.turns)
    for body in server.bodies:
        text = str(body["messages"])
        assert "SENTINEL" not in text and ("INNER" in text) == is_client(body)
        if not is_client(body):
            assert PROFILE.situation not in text and "crisis" not in text.lower() and "violation" not in text


def test_roles_are_seen_from_the_clients_side_and_a_retry_names_what_was_wrong() -> None:
    history = [("I said this.", "You heard that?"), ("I said more.", "Go on.")]
    shown = played().messages(3, history, ())
    assert [m.role for m in shown] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m.content for m in shown[2:]] == ["I said this.", "You heard that?", "I said more.", "Go on."]
    draft = ClientLine(session_key="k", turn=3, attempt=0, text="How can I help you?", violations=("helper's words",))
    again = played().messages(3, history, (draft,))
    assert again[:-2] == shown and [m.role for m in again[-2:]] == ["assistant", "user"]
    assert "it spoke as the counsellor" in again[-1].content and SCRIPT.turns[2].client.trigger in again[-1].content
    withheld = draft.model_copy(update={"text": "", "violations": ("method detail",)})
    again = played().messages(3, history, (withheld,))
    assert len(again) == len(shown) and "it named a means of harm" in again[-1].content
    withheld = draft.model_copy(update={"text": "", "violations": ("romantic theme",)})
    assert "romantic or sexual theme" in played().messages(3, history, (withheld,))[-1].content


# --- passive ---------------------------------------------------------------------------------------


def test_a_passive_scripted_client_says_little_and_keeps_every_probe(tmp_path: Path) -> None:
    server = FaultServer()
    with served(server) as url:
        for name, change in (("active", None), ("passive", {"mode": "passive"})):
            assert hold(tmp_path / name, url, contestants(url, 1), clients=3, form="full", client=change)[0] == 0
    active, passive = (
        {s.profile_id: s for s in records.read(tmp_path / n / "run" / "scripts.jsonl", Script)}
        for n in ("active", "passive")
    )
    for i, script in passive.items():
        before, kept = active[i], kept_turns(active[i])
        changed = {
            t.turn for t, b in zip(script.turns, before.turns, strict=True) if t.client.trigger != b.client.trigger
        }
        assert changed == {t.turn for t in script.turns} - kept and len(changed) > 15
        assert [t.evaluator for t in script.turns] == [t.evaluator for t in before.turns]
        spoken = [script.turns[n - 1].client.trigger for n in changed]
        assert len(set(spoken)) == len(spoken) and all(len(x.split()) <= 8 and "?" not in x for x in spoken)
        assert kept_turns(script) == kept and script.id != before.id
    identities = {s.client.weights for n in ("active", "passive") for s in read_sessions(tmp_path / n / "run")}
    assert len(identities) == 6


def read_sessions(run: Path) -> list[Session]:
    return records.read(run / "sessions.jsonl", Session)


def test_a_passive_played_client_is_told_so_and_held_to_it(tmp_path: Path) -> None:
    server = FaultServer(say=obedient)
    with served(server) as url:
        code, run = hold(tmp_path, url, contestants(url, 1), 1, client=client(url) | {"mode": "passive"}, form="full")
    (session,) = read_sessions(run)
    assert code == 0 and not session.violations and session.client.name.endswith(", passive")
    prompts = [b["messages"][0]["content"] for b in server.bodies if is_client(b)]
    assert all("the counsellor has to lead" in p for p in prompts)
    (script,) = records.read(run / "scripts.jsonl", Script)
    quiet = minimal_turns(script, passive=True)
    assert sum("Answer neutrally in at most 12 words" in p for p in prompts) == len(quiet) > 20
    one = played(script, "passive")
    turn = min(quiet)
    assert one.violations(turn, "I suppose.") == () and one.violations(turn, "Well, why?") == ("not minimal",)


# --- the count beforehand --------------------------------------------------------------------------


def test_the_estimate_of_the_clients_calls_by_hand() -> None:
    from rollout_env.open_session import OpenSession
    from rollout_env.plan import plan_sessions
    from rollout_env.planned import planned_calls
    from rollout_env.therapist import Answer, TherapistEntry

    entry = TherapistEntry.model_validate({"name": "r", "kind": "rules", "family": "r", "rules": "reflector"})
    played_by = ClientEntry.model_validate(client("http://h/v1"))
    arguments = ([SCRIPT], [entry], [0], {PROFILE.profile_id: "train"}, 30, played().sampling, None, False)
    session = OpenSession(plan_sessions(*arguments, played_by, {PROFILE.profile_id: PROFILE})[0])

    def tokens(text: str) -> int:
        return -(-len(text.encode()) // 4)

    alone = [
        tokens(played().prompt(t.turn)) + 4 + tokens("The session begins. You speak first.") + 4 for t in SCRIPT.turns
    ]
    lines = [tokens(t.client.trigger) for t in SCRIPT.turns]
    (found,) = planned_calls([session], [entry])
    history = [sum(lines[:n]) + n * (4 + 42 + 4) for n in range(12)]
    assert (found.calls, found.prompt_tokens) == (12, sum(alone) + sum(history)) and found.reply_tokens == sum(lines)
    most_history = [n * (96 + 4 + 96 + 4) for n in range(12)]
    assert found.most_prompt_tokens == 2 * (sum(alone) + sum(most_history)) + 12 * (96 + 4 + 160)
    said = {"session_key": session.plan.key, "turn": 1, "attempt": 0, "text": "x" * 40}
    session.hear(ClientLine.model_validate(said))
    assert planned_calls([session], [entry])[0].calls == 11
    session.add(Answer("y" * 8, None, Usage()))
    (found,) = planned_calls([session], [entry])
    history = [10 + 4 + 2 + 4 + sum(lines[1:n]) + (n - 1) * (4 + 42 + 4) for n in range(1, 12)]
    assert (found.calls, found.prompt_tokens) == (11, sum(alone[1:]) + sum(history))


def test_a_profile_that_is_not_there_is_named() -> None:
    from rollout_env.plan import plan_sessions

    entry = ClientEntry.model_validate(client("http://h/v1"))
    with pytest.raises(UserError, match="there is none of adaeze-nwosu"):
        plan_sessions([SCRIPT], [], [0], {"adaeze-nwosu": "train"}, 30, played().sampling, None, False, entry, {})


def test_the_clients_seed_and_sessions_are_its_own() -> None:
    one, two = played().identity, played(mode="passive").identity
    assert one.weights == f"{MODEL} at http://h/v1" and one.prompt_hash != two.prompt_hash and one.sampling
    assert digest(one.model_dump(mode="json")) != digest(two.model_dump(mode="json"))
