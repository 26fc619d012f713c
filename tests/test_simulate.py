"""Simulation with tiny random models: who meets whom, resume, failures, refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from psychepass import records
from psychepass.cli import main as cli
from psychepass.config import load
from psychepass.errors import UserError
from psychepass.schema import EvaluatorLayer, Failure, Sampling, Script, Session, TurnRecord, Usage
from rollout_env import session as session_module
from rollout_env.profiles import load_profiles
from rollout_env.script import build_script
from rollout_env.session import simulate
from rollout_env.simulate import SimulateConfig
from rollout_env.therapist import Answer, LocalTherapists, RuleTherapists, TherapistEntry, system_prompt
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parent.parent
SPLIT_OF = {
    "adaeze-nwosu": "train",
    "tomasz-wilk": "train",
    "hana-suzuki": "test",
    "greta-hoffmann": "dev",
    "farida-rahimi": "heldout",
}
SAMPLING = Sampling(temperature=0.9, max_tokens=6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("weights"), "qwen3")


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    profiles = load_profiles()
    return [build_script(profiles[p], "short") for p, split in SPLIT_OF.items() if split != "heldout"]


@pytest.fixture(scope="module")
def entries(weights) -> list[TherapistEntry]:
    return [
        TherapistEntry(name="base", kind="local", family="base", weights=str(weights), prompt="paper", seed=1),
        TherapistEntry(name="base-2", kind="local", family="base", weights=str(weights), prompt="paper", seed=2),
        TherapistEntry(name="warm", kind="local", family="base", weights=str(weights), prompt="warm", seed=1),
        TherapistEntry(name="adviser", kind="rules", family="adviser", rules="adviser"),
    ]


MEETS = {"train": ["base", "base-2", "warm", "adviser"], "test": ["base", "adviser"], "dev": ["base", "base-2"]}


def hold(folder, scripts, entries, **change) -> list[Session]:
    arguments = {"folder": folder, "target_words": 30, "sampling": SAMPLING, "meets": MEETS, "cache_gib": 0.5}
    return simulate(scripts, entries, [0], SPLIT_OF, **(arguments | change))


@pytest.fixture
def asked(monkeypatch):
    """Every batch of conversations that a therapist was asked to answer."""
    batches = []
    for speaker in (LocalTherapists, RuleTherapists):

        def reply(self, conversations, inner=speaker.reply):
            batches.append((type(self), conversations))
            return inner(self, conversations)

        monkeypatch.setattr(speaker, "reply", reply)
    return batches


def test_all_meet_as_the_config_says_and_one_batch_holds_all_of_the_same_weights(tmp_path, scripts, entries, asked):
    sessions = hold(tmp_path, scripts, entries)
    met = {(s.profile_id, s.therapist.name) for s in sessions}
    assert met == {(s.profile_id, name) for s in scripts for name in MEETS[SPLIT_OF[s.profile_id]]}
    assert sessions == [records.read(tmp_path / "sessions.jsonl", Session)[i] for i in order(sessions, tmp_path)]
    local = [len(conversations) for speaker, conversations in asked if speaker is LocalTherapists]
    assert local.count(9) == max(len(s.turns) for s in scripts)  # beside them, empty replies drawn again
    for s in sessions:
        script = next(x for x in scripts if x.id == s.script_id)
        assert [(t.turn, t.phase, t.dimension, t.client) for t in s.turns] == [
            (t.turn, t.phase, t.evaluator.dimension, t.client.trigger) for t in script.turns
        ]
        assert s.split == SPLIT_OF[s.profile_id] and s.target_words == 30
        assert all((t.logprob is None) == (s.therapist.kind == "rules") for t in s.turns)
        assert s.usage.calls >= len(s.turns)
        if s.therapist.kind == "local":
            assert s.usage.calls <= s.usage.completion_tokens <= 6 * s.usage.calls
            assert s.usage.prompt_tokens > 0 and s.usage.seconds > 0
    journal = records.read(tmp_path / "turns.jsonl", TurnRecord)
    assert {(r.session_key, r.turn) for r in journal} == {(s.key, t) for s in sessions for t in s.turns}
    assert len(journal) == sum(len(s.turns) for s in sessions)
    seeds = {s.therapist.name: s.turns for s in sessions if s.profile_id == "tomasz-wilk"}
    assert [t.therapist for t in seeds["base"]] != [t.therapist for t in seeds["base-2"]]


def order(sessions: list[Session], folder: Path) -> list[int]:
    ids = [s.id for s in records.read(folder / "sessions.jsonl", Session)]
    return [ids.index(s.id) for s in sessions]


def test_a_second_call_asks_nothing(tmp_path, scripts, entries, asked):
    first = hold(tmp_path, scripts[:1], entries)
    before = (tmp_path / "sessions.jsonl").read_bytes()
    asked.clear()
    assert hold(tmp_path, scripts[:1], entries) == first
    assert not asked
    assert (tmp_path / "sessions.jsonl").read_bytes() == before


@pytest.mark.parametrize("after", [1, 5, 20])
def test_an_interrupted_call_goes_on_and_ends_the_same(tmp_path, scripts, entries, asked, monkeypatch, after):
    """Interrupted before batch `after`, with the journal's last line torn."""
    whole = hold(tmp_path / "whole", scripts[:2], entries)
    n_batches = len(asked)
    asked.clear()

    def interrupt(speaker, batch, files, bar, inner=session_module._turn):
        if len(asked) == after:
            raise KeyboardInterrupt
        return inner(speaker, batch, files, bar)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session_module, "_turn", interrupt)
        hold(tmp_path / "cut", scripts[:2], entries)
    journal = tmp_path / "cut" / "turns.jsonl"
    data = journal.read_bytes()
    torn = data[: data.rstrip(b"\n").rfind(b"\n") + 40]
    journal.write_bytes(torn)
    kept = {(r.session_key, r.turn.turn) for r in map(parse_turn, torn.split(b"\n")[:-1])}
    said = len(asked)
    resumed = hold(tmp_path / "cut", scripts[:2], entries)
    for _, conversations in asked[said:]:
        assert not kept & {(c.key, len(c.history) + 1) for c in conversations}
    assert n_batches <= len(asked) <= n_batches + 2
    assert said_in(resumed) == said_in(whole)


def said_in(sessions: list[Session]) -> dict[str, list[str]]:
    """Not the ids: the batch's make-up may change the last digit of a log-probability."""
    return {s.key: [t.therapist for t in s.turns] for s in sessions}


def parse_turn(line: bytes) -> TurnRecord:
    return TurnRecord.model_validate_json(line)


def test_nothing_of_the_evaluator_layer_reaches_a_therapist(tmp_path, scripts, entries, asked):
    turns = [
        t.model_copy(
            update={
                "evaluator": EvaluatorLayer(
                    dimension=t.evaluator.dimension, assesses="SENTINEL", targets={"SENTINEL": ("SENTINEL",)}
                ),
                "client": t.client.model_copy(update={"theme": "SENTINEL", "resistance": "SENTINEL"}),
            }
        )
        for t in scripts[0].turns
    ]
    hold(tmp_path, [scripts[0].model_copy(update={"turns": tuple(turns)})], entries)
    assert asked
    for _, conversations in asked:
        assert "SENTINEL" not in repr(conversations)
        for c in conversations:
            assert c.system in ("", system_prompt("paper", 30), system_prompt("warm", 30))


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_empty_reply_is_drawn_again_once_and_never_made_up(tmp_path, scripts, entries, monkeypatch, stubborn):
    attempts = []

    def reply(self, conversations):
        out = []
        for c in conversations:
            third = len(c.history) == 2
            attempts.extend([c.seed] if third else [])
            empty = third and (stubborn or len(attempts) == 1)
            out.append(Answer("" if empty else "I see.", -1.0, Usage(calls=1, completion_tokens=2)))
        return out

    monkeypatch.setattr(LocalTherapists, "reply", reply)
    sessions = hold(tmp_path, scripts[:1], entries[:1], meets={"train": ["base"]})
    assert len(set(attempts)) == 2  # another seed
    failures = records.read(tmp_path / "session_failures.jsonl", Failure)
    if not stubborn:
        assert not failures and sessions[0].turns[2].therapist == "I see."
        assert sessions[0].usage.calls == len(sessions[0].turns) + 1
        return
    assert not sessions
    assert failures[0].reason == "empty reply, twice" and failures[0].usage.calls == 2
    assert failures[0].detail == "therapist base, client adaeze-nwosu, seed 0, turn 3"
    assert len(records.read(tmp_path / "turns.jsonl", TurnRecord)) == 2
    assert not hold(tmp_path, scripts[:1], entries[:1], meets={"train": ["base"]})
    assert len(attempts) == 2  # not tried again


def test_a_small_cache_means_more_batches_and_the_same_sessions(tmp_path, scripts, entries, asked):
    wide = hold(tmp_path / "wide", scripts, entries[:2], meets={"train": ["base", "base-2"]})
    n_wide = len(asked)
    narrow = hold(tmp_path / "narrow", scripts, entries[:2], meets={"train": ["base", "base-2"]}, cache_gib=2e-3)
    assert len(asked) - n_wide > n_wide
    assert said_in(narrow) == said_in(wide)


def test_wrong_clients_and_names_are_refused(tmp_path, scripts, entries):
    heldout = build_script(load_profiles()["farida-rahimi"], "short")
    for change, given, fault in (
        ({}, [heldout], "'farida-rahimi' is of the set 'heldout'; permitted here: train, test or dev"),
        ({"heldout": True, "meets": None}, scripts, "'adaeze-nwosu' is of the set 'train'; permitted here: heldout"),
        ({"meets": {"train": ["nobody"]}}, scripts, "meets names nobody; permitted: base, base-2, warm, adviser"),
    ):
        with pytest.raises(UserError, match=fault):
            hold(tmp_path, given, entries, **change)
    with pytest.raises(UserError, match="two therapists have one name"):
        hold(tmp_path, scripts, [*entries, entries[0]])
    assert not list(tmp_path.iterdir())


# --- the stage -------------------------------------------------------------------------------------


def write_config(folder: Path, weights: Path, **change) -> Path:
    sets = {s: [p for p, of in SPLIT_OF.items() if of == s] for s in ("train", "test", "dev", "heldout")}
    (folder / "splits.yaml").write_text(yaml.safe_dump(sets))
    local = {"kind": "local", "family": "base", "weights": str(weights), "prompt": "paper"}
    config = {
        "run": str(folder / "run"),
        "splits": str(folder / "splits.yaml"),
        "form": "short",
        "target_words": 30,
        "sampling": {"max_tokens": 6},
        "therapists": [
            {"name": "base", "seed": 1, **local},
            {"name": "base-2", "seed": 2, **local},
            {"name": "explorer", "kind": "rules", "family": "explorer", "rules": "explorer"},
        ],
        "meets": {"train": ["base", "explorer"], "test": ["base", "explorer"], "dev": ["base", "base-2"]},
        "seeds": [0],
        "cache_gib": 0.5,
    }
    path = folder / "simulate.yaml"
    path.write_text(yaml.safe_dump(config | change))
    return path


def test_the_stage_killed_and_called_again_ends_complete(tmp_path, weights, asked):
    """A real SIGKILL in the middle; then the files hold every session once and no held-out client."""
    path = write_config(tmp_path, weights)
    journal = tmp_path / "run" / "turns.jsonl"
    command = [sys.executable, "-m", "psychepass.cli", "simulate", str(path)]
    killed = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while not (journal.is_file() and journal.read_bytes().count(b"\n") > 60) and killed.poll() is None:
            time.sleep(0.005)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    before = journal.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert cli(["simulate", str(path)]) == 0
    assert journal.read_bytes().startswith(before)
    sessions = records.read(tmp_path / "run" / "sessions.jsonl", Session)
    assert len({s.key for s in sessions}) == len(sessions) == 8
    assert {s.split for s in sessions} == {"train", "test", "dev"}
    assert len(records.read(journal, TurnRecord)) == sum(len(s.turns) for s in sessions)
    for name in ("profiles.jsonl", "scripts.jsonl", "sessions.jsonl", "turns.jsonl"):
        assert "farida" not in (tmp_path / "run" / name).read_text()
    manifest = records.read_json(tmp_path / "run" / "manifests" / "simulate.json")
    assert manifest["ended"] and manifest["notes"]["sessions"] == 8
    asked.clear()
    assert cli(["simulate", str(path)]) == 0 and not asked


def test_a_changed_wording_on_an_existing_run_stops(tmp_path, weights):
    path = write_config(tmp_path, weights, meets={"train": ["explorer"]})
    assert cli(["simulate", str(path)]) == 0
    scripts = tmp_path / "run" / "scripts.jsonl"
    manifest = tmp_path / "run" / "manifests" / "simulate.json"
    records.write_json(manifest, records.read_json(manifest) | {"ended": None})
    records.write(scripts, records.read(scripts, Script)[1:])
    assert cli(["simulate", str(path)]) == 2


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("meets.heldout=[base]", "meets.heldout.[key]: Input should be 'train', 'test' or 'dev'"),
        ("therapists=[{name: base, kind: local, family: base}]", "therapist 'base' of kind local needs 'weights'"),
        ("form=middle", "form: Input should be 'full' or 'short', got 'middle'"),
        ("sampling.temperature=hot", "sampling.temperature: Input should be a valid number"),
        ("sampling.tempo=1", "unknown key 'sampling.tempo'"),
        ("seeds=[1,0,1]", "seeds: 1 is there more than once; permitted: each once"),
        ("meets.train=[base,base]", "meets.train names base more than once; permitted: each once"),
    ],
)
def test_a_bad_config_is_named_and_writes_nothing(tmp_path, weights, capsys, override, fault):
    assert cli(["simulate", str(write_config(tmp_path, weights)), override]) == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("meets", "fault"),
    [({}, "meets names no therapist"), ({"train": [], "dev": []}, "meets names no therapist")],
)
def test_a_stage_without_a_session_is_refused(tmp_path, weights, capsys, meets, fault):
    path = write_config(tmp_path, weights, meets=meets)
    assert cli(["simulate", str(path)]) == 2
    assert fault in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_sets_without_a_client_are_refused_and_a_mended_config_goes_on(tmp_path, capsys):
    """Those who meet nobody are named, and their weights not asked for; `test` has clients, and they meet nobody."""
    path = write_config(tmp_path, tmp_path / "no-weights", meets={"dev": ["explorer"]})
    splits = tmp_path / "splits.yaml"
    sets = yaml.safe_load(splits.read_text())
    splits.write_text(yaml.safe_dump(sets | {"dev": []}))
    assert cli(["simulate", str(path)]) == 2
    assert "no session is to be held: 3 clients meet none of the therapists" in capsys.readouterr().err
    splits.write_text(yaml.safe_dump(sets))
    assert cli(["simulate", str(path)]) == 0
    said = capsys.readouterr().err
    assert said.count("base, base-2: in no list of meets") == 1
    assert len(records.read(tmp_path / "run" / "sessions.jsonl", Session)) == 1


def test_files_of_another_stage_are_never_deleted(tmp_path, capsys):
    """Stage `profiles` writes a file of the same name; a run that both share is refused, and the file stays."""
    path = write_config(tmp_path, tmp_path / "no-weights", meets={"dev": ["explorer"]})
    (tmp_path / "run").mkdir()
    own = tmp_path / "run" / "profiles.jsonl"
    records.write(own, load_profiles().values())
    before = own.read_bytes()
    assert cli(["simulate", str(path), f"profiles={own}"]) == 2
    assert "was made from other profiles" in capsys.readouterr().err
    assert own.read_bytes() == before and not (tmp_path / "run" / "scripts.jsonl").exists()


def test_a_held_out_client_of_the_common_bank_is_refused(tmp_path, capsys):
    path = write_config(tmp_path, tmp_path / "no-weights", meets={"dev": ["explorer"]})
    splits = tmp_path / "splits.yaml"
    sets = yaml.safe_load(splits.read_text())
    moved = sets["train"][0]
    splits.write_text(yaml.safe_dump(sets | {"train": sets["train"][1:], "heldout": [*sets["heldout"], moved]}))
    assert cli(["simulate", str(path)]) == 2
    assert (
        f"{moved}: the script's bank is 'common'; the set 'heldout' permits 'heldout' alone" in capsys.readouterr().err
    )


def test_the_shipped_example_of_endpoints_loads_and_its_anchor_makes_equal_endpoints():
    first, second, *_ = load(SimulateConfig, ROOT / "configs/endpoints.yaml").therapists
    assert first.endpoint == second.endpoint and first.prompt != second.prompt


def test_the_papers_clients_are_one_config():
    config = load(SimulateConfig, ROOT / "configs/paper-clients.yaml")
    assert config.form == "full" and config.client and config.client.endpoint and config.client.mode == "active"
    assert config.profiles and config.scripts and config.splits == "runs/profiles/splits.yaml"


@pytest.mark.parametrize("path", ["configs/simulate.yaml", "configs/quickstart/simulate.yaml"])
def test_shipped_configs_load(path):
    config = load(SimulateConfig, ROOT / path)
    names = {t.name for t in config.therapists}
    assert len(names) == 6 and all(names >= set(met) for met in config.meets.values())
    assert len(config.meets["dev"]) == 2
    assert {"configs/simulate.yaml": ("full", 100), "configs/quickstart/simulate.yaml": ("short", 30)}[path] == (
        config.form,
        config.target_words,
    )
