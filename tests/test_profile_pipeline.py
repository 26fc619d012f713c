"""Stage `profiles` over a made-up server: nothing lost, nothing invented, nothing asked twice, a person's word kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from psychepass import llm, records
from psychepass.cli import main as cli
from psychepass.config import load
from psychepass.errors import UserError
from psychepass.ledger import read_calls
from psychepass.report_data import unverified_clients
from psychepass.schema import Failure, Profile
from psychepass.splits import Splits, shared_runs, unverified
from rollout_env.deidentify import DeIdentifier
from rollout_env.profile_draft import MINOR, MINOR_ROMANTIC, Declined, faults, read_profile, read_scores, scoring_prompt
from rollout_env.profile_records import Candidate, Duplicate, Origin, Scored, Seed
from rollout_env.profile_sources import profile_text
from rollout_env.profile_work import ProfilesConfig
from rollout_env.profiles import load_profiles
from tests.conftest import ROOT
from tests.endpoint_rig import contestants
from tests.endpoint_rig import write_config as write_simulate
from tests.fault_server import ALWAYS, Fault, FaultServer, served, settle
from tests.profile_rig import CHINESE, ENGLISH, draft, is_scoring, many_seeds, say, scores, write_config

FILES = {"seeds.jsonl": Seed, "candidates.jsonl": Candidate, "scores.jsonl": Scored, "profile_failures.jsonl": Failure}
FILES |= {"duplicates.jsonl": Duplicate, "profiles.jsonl": Profile}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(llm, "LONGEST_PAUSE_S", 0.05)


@pytest.fixture(scope="module")
def tool() -> DeIdentifier:
    return DeIdentifier()


def ids(run: Path) -> dict[str, set[str]]:
    """What each file says, usage and time aside."""
    return {name: {r.id for r in records.read(run / name, model)} for name, model in FILES.items()}


def summary(run: Path) -> dict[str, Any]:
    return records.read_json(run / "profiles.json")


def test_seeds_become_clients_of_four_sets_marked_as_unverified(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    seeds = [*many_seeds(24), *ENGLISH, "I'm 15 and school is too much.", many_seeds(1)[0] + " Still."]
    server, run = FaultServer(say=say), tmp_path / "run"
    with served(server) as url:
        config = write_config(tmp_path, url, seeds)
        (tmp_path / "zh.txt").write_text("\n".join(CHINESE), encoding="utf-8")
        tree = yaml.safe_load(config.read_text())
        tree["sources"].append({"kind": "text", "path": str(tmp_path / "zh.txt"), "licence": "own", "language": "zh"})
        config.write_text(yaml.safe_dump(tree))
        assert cli(["profiles", str(config), "--dry-run"]) == 0
        assert not run.exists() and not server.log
        rows = capsys.readouterr().out.splitlines()
        assert [r.split("  ")[0].split(", ")[-1] for r in rows[1:3]] == ["expansion", "scoring"]
        assert [int(r.split(", ")[1].split()[1]) for r in rows[1:3]] == [30, 30]
        assert cli(["profiles", str(config)]) == 0
        error, asked = capsys.readouterr().err, len(server.log)
        assert asked == 60
        assert cli(["profiles", str(config)]) == 0 and len(server.log) == asked
    facts = summary(run)
    assert facts["read"] == 32 and facts["refused"] == {MINOR: 1} and facts["seed_duplicates"] == 1
    assert facts["replaced"] == {"EMAIL": 1, "PERSON": 5, "PHONE": 2, "PLACE": 1} and facts["profiles"] == 30
    stored = (run / "seeds.jsonl").read_text() + (run / "candidates.jsonl").read_text()
    for original in ("Castellan", "r@example", "555-0187", "李建华", "13812345678", "上海"):
        assert original not in stored
    # the clients: Appendix A's fields, fictional names, both languages, no eight words shared with the held-out ones
    clients = load_profiles(run / "profiles.jsonl")
    split_of = load(Splits, run / "splits.yaml").of()
    assert list(split_of) == list(clients) and Counter(split_of.values()) == {
        "train": 4,
        "test": 2,
        "dev": 2,
        "heldout": 4,
    }
    assert len({p.name for p in clients.values()}) == 12 and {c.language for c in candidates(run)} == {"en", "zh"}
    held = [t for p, c in clients.items() if split_of[p] == "heldout" for t in profile_text(c).split("\n")]
    rest = [t for p, c in clients.items() if split_of[p] != "heldout" for t in profile_text(c).split("\n")]
    assert held and rest and not shared_runs(held, rest)
    # each says where it comes from, and that no person has looked at it
    origins = {c.profile.profile_id: c.origin for c in records.read(run / "candidates.jsonl", Candidate)}
    assert all(origins[p].licence == "own" and origins[p].row >= 1 for p in clients)
    assert unverified(clients.values()) == "12 of 12 client profiles are not verified by a person"
    assert "profiles: 0 of 12 are verified by a person" in error and "short: " in error
    assert summary(run)["review"] == {"edited": 0, "rejected": 0, "unverified": 12, "verified": 0}


def candidates(run: Path) -> list[Profile]:
    return [c.profile for c in records.read(run / "candidates.jsonl", Candidate)]


def test_bad_answers_are_shown_their_error_once_and_then_become_failures(tmp_path: Path):
    """The first answer to each prompt is bad; a third of the seeds stays bad; one model declines."""

    def stubborn(body: dict[str, Any]) -> str:
        first, prompt = len(body["messages"]) == 1, body["messages"][0]["content"]
        if is_scoring(body):
            return json.dumps(scores(body, linguistic_complexity=9 if first else 3))
        if "and 3" in prompt.split("Notes:")[1]:
            return '{"declined": "minor"}'
        if "from clay" in prompt:
            return json.dumps(draft(body, topic="Weather"))
        return json.dumps(draft(body))[:-30] if first else "```json\n" + json.dumps(draft(body)) + "\n```"

    server, run, seeds = FaultServer(say=stubborn), tmp_path / "run", many_seeds(20)
    with served(server) as url:
        config = write_config(tmp_path, url, seeds)
        assert cli(["profiles", str(config)]) == 0
        asked = len(server.log)
        assert cli(["profiles", str(config)]) == 0 and len(server.log) == asked
    declined = sum("and 3" in s for s in seeds)
    weather = sum("from clay" in s and "and 3" not in s for s in seeds)
    failures = records.read(run / "profile_failures.jsonl", Failure)
    assert declined and weather
    assert Counter(f.reason for f in failures) == {MINOR: declined, "unusable answer, twice": weather}
    told = [f.detail for f in failures if f.detail]
    assert all(d.count("topic is 'Weather'; permitted: Romantic Relationships") == 2 for d in told)
    good = 20 - declined - weather
    assert len(candidates(run)) == good and asked == declined + 2 * weather + 2 * good + 2 * good
    again = [b["messages"] for b in server.bodies if len(b["messages"]) == 3]
    assert len(again) == weather + 2 * good and all(m[1]["role"] == "assistant" for m in again)
    assert any("not one JSON object" in m[2]["content"] for m in again)
    assert any("linguistic_complexity: Input should be less than or equal to 5" in m[2]["content"] for m in again)
    # every call is on a record
    calls = list(read_calls(run / "ledger_profiles.jsonl"))
    kept = [*records.read(run / "candidates.jsonl", Candidate), *records.read(run / "scores.jsonl", Scored), *failures]
    assert sum(c.cost_usd for c in calls) == pytest.approx(sum(r.usage.cost_usd for r in kept)) and len(calls) == asked
    # and in the manifest: what failed has cost something too
    notes = records.read_json(run / "manifests" / "profiles.json")["notes"]
    assert notes["usage"]["calls"] == asked and sum(f.usage.calls for f in failures) == declined + 2 * weather
    assert notes["cost_usd"] == pytest.approx(sum(c.cost_usd for c in calls), abs=1e-6)
    assert notes["usage"]["cost_usd"] == pytest.approx(notes["cost_usd"], abs=1e-6)


def test_killed_at_any_step_it_goes_on_to_the_same_records(tmp_path: Path):
    server = FaultServer((Fault("500", 0.05), Fault("empty", 0.03, ALWAYS)), delay_s=0.1, say=say)
    with served(server) as url:
        plain, killed = (write_config(tmp_path / n, url, many_seeds(40)) for n in ("plain", "killed"))
        for config in (plain, killed):  # one file, so that the origins are equal
            config.write_text(
                config.read_text().replace(str(config.parent / "seeds"), str(tmp_path / "plain" / "seeds"))
            )
        assert cli(["profiles", str(plain)]) == 0
        undisturbed = len(server.log)
        server.log, server.bodies = [], []
        server.seen.clear()
        in_flight = 0
        for calls in (20, 55):  # among the expansions, among the scores
            server.hold_from = calls + 2  # however late the kill, it comes before the end
            process = subprocess.Popen([sys.executable, "-m", "psychepass.cli", "profiles", str(killed)], cwd=ROOT)
            while process.poll() is None and len(server.log) < calls:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            server.hold_from = None
            settle(url)
            while server.open:
                time.sleep(0.01)
            in_flight += 8
        assert cli(["profiles", str(killed)]) == 0
    assert ids(tmp_path / "killed" / "run") == ids(tmp_path / "plain" / "run")
    # after a kill between a first unreadable answer and the second, both are asked again
    unreadable = len(ids(tmp_path / "plain" / "run")["profile_failures.jsonl"])
    assert undisturbed <= len(server.log) <= undisturbed + in_flight + unreadable


def test_no_answer_and_a_spent_budget_leave_the_rest_for_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(llm, "TRIES", 2)
    server = FaultServer((Fault("500", 0.3, ALWAYS),), say=say)
    with served(server) as url:
        config = write_config(tmp_path, url, many_seeds(20))
        assert cli(["profiles", str(config)]) == 75
        error = capsys.readouterr().err
        assert "expansion: " in error and " of 20 were left open (" in error and "call the stage again" in error
        assert not records.read(tmp_path / "run" / "profile_failures.jsonl", Failure)
        done = (tmp_path / "run" / "candidates.jsonl").read_bytes()
        server.faults = ()
        assert cli(["profiles", str(config), "budget_usd=0.0001"]) == 2
        assert "budget_usd is 0.0001" in capsys.readouterr().err
        assert cli(["profiles", str(config), "--dry-run"]) == 0
        expected = 20 - done.count(b"\n")
        assert int(capsys.readouterr().out.splitlines()[1].split(", ")[1].split()[1]) == expected
        assert cli(["profiles", str(config), "budget_usd=1"]) == 0
    assert (tmp_path / "run" / "candidates.jsonl").read_bytes().startswith(done)
    assert len(candidates(tmp_path / "run")) == 20


# --- the person's word ------------------------------------------------------------------------------


def edit(run: Path, change: Any) -> None:
    rows = yaml.safe_load((run / "review.yaml").read_text(encoding="utf-8"))
    change(rows)
    (run / "review.yaml").write_text(yaml.safe_dump(rows, allow_unicode=True, sort_keys=False), encoding="utf-8")


def test_a_persons_edits_are_taken_over_and_bad_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    server, run = FaultServer(say=say), tmp_path / "run"
    with served(server) as url:
        config = str(write_config(tmp_path, url, many_seeds(20)))
        assert cli(["profiles", config]) == 0
    before = load_profiles(run / "profiles.jsonl")
    one, two, three = list(before)[:3]

    def good(rows: list[dict[str, Any]]) -> None:
        rows[0] |= {"verified": True, "reviewer": "R. Viewer", "remarks": "changed the job"}
        rows[0]["profile"]["occupation"] = "Baker"
        rows[1]["verified"] = "reject"
        rows[2] |= {"verified": True, "reviewer": "R. Viewer"}

    edit(run, good)
    assert cli(["profiles", config]) == 0
    after = load_profiles(run / "profiles.jsonl")
    assert after[one].occupation == "Baker" and after[one].human_verified and after[three].human_verified
    assert two not in after and two not in load(Splits, run / "splits.yaml").of() and len(after) == len(before) - 1
    assert unverified(after.values()).startswith(f"{len(before) - 3} of {len(before) - 1} ")
    assert summary(run)["review"] == {"edited": 1, "rejected": 1, "unverified": len(before) - 3, "verified": 2}
    assert records.read_json(run / "manifests" / "profiles.json")["notes"]["reviewed"]["verified"] == 2
    first = json.loads((run / "reviews.jsonl").read_text().splitlines()[0])
    assert first["edited"] == ["occupation"] and first["reviewer"] == "R. Viewer" and first["decision"] == "verified"

    def field(name: str, value: Any) -> Any:
        return lambda rows: rows[0]["profile"].update({name: value})

    kept = (run / "profiles.jsonl").read_bytes(), (run / "review.yaml").read_bytes()
    for change, told in (
        (field("age", 15), "age is 15; permitted: 18 or more"),
        (field("age", "old"), "age: Input should be a valid integer"),
        (field("topic", "Weather"), "topic is 'Weather'; permitted: "),
        (
            field("situation", "Write to me at a@example.org, please, or do not."),
            "contact or number of a person (email)",
        ),
        (field("hobby", "x"), "unknown key 'hobby'"),
        (field("profile_id", "x"), "profile has profile_id; permitted"),
        (lambda rows: rows[0].update(reviewer=" "), "verified is true but reviewer is empty"),
        (lambda rows: rows[0].update(verified="maybe"), "verified"),
        (lambda rows: rows[0].update(set="heldout"), "set is 'heldout'; permitted: 'train'"),
        (lambda rows: rows.pop(), "the selected profiles are not those listed (missing ["),
        (lambda rows: rows.append(rows[0]), "stands twice"),
    ):
        edit(run, change)
        capsys.readouterr()
        assert cli(["profiles", config]) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("psychepass profiles: ")]
        assert len(error) == 1 and told in error[0] and (run / "profiles.jsonl").read_bytes() == kept[0], told
        (run / "review.yaml").write_bytes(kept[1])
    (run / "review.yaml").write_text("- {")
    assert cli(["profiles", config]) == 2 and "not valid YAML" in capsys.readouterr().err
    (run / "review.yaml").write_bytes(kept[1].replace(b"time: Last spring", b"time: 2021-02-30", 1))
    assert cli(["profiles", config]) == 2
    assert "day is out of range for month; put a date that is meant as text in quotes" in capsys.readouterr().err


def test_whole_profiles_need_no_expansion_and_simulate_takes_what_comes_out(tmp_path: Path):
    pool = list(load_profiles().values())[:20]
    records.write(tmp_path / "pool.jsonl", pool)
    server, run = FaultServer(say=say), tmp_path / "run"
    with served(server) as url:
        config = write_config(tmp_path, url, ["unused"])
        tree = yaml.safe_load(config.read_text())
        tree["sources"] = [{"kind": "profiles", "path": str(tmp_path / "pool.jsonl"), "licence": "own"}]
        config.write_text(yaml.safe_dump(tree))
        assert cli(["profiles", str(config)]) == 0
        assert len(server.log) == 20 and all(is_scoring(b) for b in server.bodies)
    clients = load_profiles(run / "profiles.jsonl")
    shipped = load_profiles()
    assert len(clients) == 12 and all(clients[p] == shipped[p] for p in clients)


def test_unverified_clients_are_marked_by_simulate_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mark = "2 of 2 client profiles are not verified by a person"
    with served(FaultServer()) as url:
        assert cli(["simulate", str(write_simulate(tmp_path, contestants(url, 1), clients=2))]) == 0
    run = tmp_path / "run"
    assert f"simulate: {mark}" in capsys.readouterr().err
    assert records.read_json(run / "manifests" / "simulate.json")["notes"]["unverified_profiles"] == mark
    assert unverified_clients(run) == mark
    verified = [p.model_copy(update={"human_verified": True}) for p in records.read(run / "profiles.jsonl", Profile)]
    records.write(run / "profiles.jsonl", verified)
    assert unverified_clients(run) == ""
    records.write(run / "heldout" / "profiles.jsonl", [list(load_profiles().values())[-1]])
    assert unverified_clients(run) == "1 of 3 client profiles are not verified by a person"


# --- what a draft may not be ------------------------------------------------------------------------


def seed(**change: Any) -> Seed:
    origin = Origin(kind="text", file="f", row=1, licence="own")
    given = {"origin": origin, "language": "en", "name": "Ada Moss", "gender": "female", "age": None, "text": "t"}
    return Seed.model_validate(given | {"replaced": {}} | change)


BODY = {"messages": [{"content": "The client: Ada, female, age 40."}]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"age": 17}, "age is 17; permitted: 18 or more"),
        ({"age": 12}, "age is 12; permitted: 13 to 120"),
        ({"age": "40"}, "age: Input should be a valid integer, got '40'"),
        ({"topic": "Weather"}, "topic is 'Weather'"),
        ({"name": "Eve"}, "unknown key 'name'"),
        ({"situation": "She thinks of an overdose every single night."}, "forbidden words 'overdose'"),
        ({"situation": "She and [PERSON_1] quarrel every single night."}, r"placeholder '\[PERSON_1\]'"),
        ({"situation": "She can be reached at (212) 555-0187 at night."}, r"contact or number of a person \(phone\)"),
        (
            {"situation": "她每天晚上都和姐姐吵架，很难过，不知道怎么办才好。她说自己没有办法。"},
            "must be written in English",
        ),
        ({"interests": []}, "interests: Tuple should have at least 1 item"),
        ({"facts": {"one": "I walk."}}, "facts: Dictionary should have at least 3 items"),
    ],
)
def test_a_draft_that_breaks_a_rule_is_refused(tool: DeIdentifier, change: dict[str, Any], told: str):
    assert read_profile(json.dumps(draft(BODY)), seed(age=40), "en", False, tool).name == "Ada Moss"
    with pytest.raises(ValueError, match=told):
        read_profile(json.dumps(draft(BODY, **change), ensure_ascii=False), seed(), "en", False, tool)


def test_a_minor_is_permitted_on_request_and_never_with_romance(tool: DeIdentifier):
    young = {"age": 16, "topic": "Academics"}
    assert read_profile(json.dumps(draft(BODY, **young)), seed(), "en", True, tool).age == 16
    for change in ({"topic": "Romantic Relationships"}, {"interests": ["her boyfriend"]}):
        with pytest.raises(Declined, match=MINOR_ROMANTIC):
            read_profile(json.dumps(draft(BODY, **young | change)), seed(), "en", True, tool)
    with pytest.raises(Declined, match=MINOR):
        read_profile('{"declined": "minor"}', seed(), "en", False, tool)
    with pytest.raises(ValueError, match="age is 40; it must be the given 41"):
        read_profile(json.dumps(draft(BODY)), seed(age=41), "en", False, tool)


def test_a_profile_read_back_is_scored_with_the_same_words(tool: DeIdentifier, tmp_path: Path):
    made = read_profile(json.dumps(draft(BODY)), seed(), "en", False, tool)
    records.write(tmp_path / "p.jsonl", [made])
    (back,) = records.read(tmp_path / "p.jsonl", Profile)
    assert list(made.facts) != list(back.facts) and scoring_prompt(made) == scoring_prompt(back)


def test_minors_are_read_on_request_alone(tmp_path: Path):
    young = next(iter(load_profiles().values())).model_copy(update={"age": 15})
    records.write(tmp_path / "p.jsonl", [young])
    assert len(load_profiles(tmp_path / "p.jsonl", allow_minors=True)) == 1
    with pytest.raises(UserError, match="age is 15"):
        load_profiles(tmp_path / "p.jsonl")


def test_a_chinese_draft_and_the_shipped_pool_pass(tool: DeIdentifier):
    body = {"messages": [{"content": "来访者：李安，性别 female，年龄 40。"}]}
    profile = read_profile(json.dumps(draft(body)), seed(language="zh", name="李安"), "zh", False, tool)
    assert profile.language == "zh" and profile.age == 40
    assert {p: f for p, c in load_profiles().items() if (f := faults(c, False, tool))} == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("3, 4, 5", "not one JSON object"),
        ("[" * 2_000, "not one JSON object: "),
        ('{"a": ' * 100_000, "not one JSON object: nested too deeply"),
        ('{"linguistic_complexity": 3, "emotional_intensity": 3}', "missing key 'counselling_relevance'"),
        (
            json.dumps(scores(BODY, emotional_intensity=0)),
            "emotional_intensity: Input should be greater than",
        ),
        (json.dumps(scores(BODY, emotional_intensity=3.5)), "emotional_intensity: Input should be a valid integer"),
        (json.dumps(scores(BODY, romantic_or_sexual="no")), "romantic_or_sexual: Input should be a valid boolean"),
    ],
)
def test_scores_that_cannot_be_read_are_refused(text: str, told: str):
    with pytest.raises(ValueError, match=told):
        read_scores(text)


# --- bad input: one clear error, before any call ----------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"least": {"emotional_intensity": 6}}, "least.emotional_intensity is 6; permitted: 1 to 5"),
        ({"sets": {"train": 1, "test": -1, "dev": 0, "heldout": 0}}, "sets.test is -1; permitted: 0 or more"),
        ({"sets": {"train": 1}}, "sets lacks test, dev, heldout"),
        ({"topic_shares": {"Weather": 1.0}}, "topic_shares names Weather"),
        ({"near_duplicate": 0.0}, "near_duplicate: Input should be greater than 0"),
        ({"sources": []}, "sources"),
        ({"spacy_pipelines": {"en": "no_such"}}, "spacy_pipelines.en: cannot load 'no_such'"),
        ({"language": "fr"}, "language"),
        ({"endpoint": "key"}, "the environment variable NO_SUCH_KEY is not set"),
        ({"endpoint": "model"}, "has no model 'made-up-9'"),
    ],
)
def test_bad_configs_are_one_error_each_and_can_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], told: str
):
    server = FaultServer(say=say)
    with served(server) as url:
        plain = yaml.safe_load(write_config(tmp_path, url, many_seeds(3)).read_text())["endpoint"]
        ends = {"key": plain | {"key_env": "NO_SUCH_KEY"}, "model": plain | {"model": "made-up-9"}}
        change = {k: ends[v] if k == "endpoint" else v for k, v in change.items()}
        assert cli(["profiles", str(write_config(tmp_path, url, many_seeds(3), **change))]) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("psychepass profiles: ")]
        assert len(error) == 1 and told in error[0] and not server.log
        assert cli(["profiles", str(write_config(tmp_path, url, many_seeds(3)))]) == 0


def test_the_shipped_config_is_the_papers_hundred_and_hundred():
    config = load(ProfilesConfig, ROOT / "configs" / "profiles.yaml")
    assert config.sets["heldout"] == 100 == sum(n for s, n in config.sets.items() if s != "heldout")
