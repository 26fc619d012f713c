"""Stage `heldout` end to end: rule-based contestants, a scorer over HTTP, kills, and bad input."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from psychepass import config as configs
from psychepass import records, report_data
from psychepass.cli import main as cli
from psychepass.schema import Battle, Dimension, Script, Session, TurnRecord
from psychepass.splits import Splits
from rollout_env.profiles import load_profiles
from rollout_env.script import build_script
from rollout_env.therapist import TherapistEntry
from tests.conftest import ROOT
from tests.made import identity, session
from tests.tiny import tiny_model
from tournament import heldout, paired_rewards
from tournament.heldout_setup import policy_files
from tournament.measuring import ROLES
from tournament.reference_judge import ReferenceJudge

CONFIG = str(ROOT / "configs" / "quickstart" / "heldout.yaml")
SPLITS = configs.load(Splits, ROOT / "configs" / "splits.yaml")
MADE = ("scripts.jsonl", "turns.jsonl", "sessions.jsonl", "battles.jsonl", "rewards.jsonl", "summary.json")


class Scorer:
    """GET /health, POST /score: the reward is the number of words a reply, with the dimension's length added.

    Once `answered_at_once` groups are scored, the next ones wait for `go_on`."""

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []
        self.answered_at_once, self.go_on = math.inf, threading.Event()
        self.model, self.dimensions = "rm-test", [d.value for d in Dimension if d is not Dimension.DIVERSITY]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send({"status": "ok", "model": outer.model, "dimensions": outer.dimensions})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if len(outer.groups) >= outer.answered_at_once:
                    outer.go_on.wait()
                outer.groups += body["groups"]
                self._send({"model": outer.model, "rewards": [outer.reward(g) for g in body["groups"]]})

            def _send(self, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def reward(self, group: dict[str, Any]) -> list[list[float]]:
        return [[len(r.split()) + 0.1 * len(d) for d in group["dimensions"]] for r in group["responses"]]

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def scorer() -> Iterator[Scorer]:
    made = Scorer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    """Of two clients that are not held out: what the run's scripts.jsonl holds."""
    profiles = load_profiles()
    return [build_script(profiles[p], "short") for p in (*SPLITS.train[:1], *SPLITS.dev[:1])]


def run_dir(folder: Path, scripts: list[Script]) -> Path:
    """What the stage needs of the stages before it."""
    records.write(folder / "scripts.jsonl", scripts)
    tau = dict.fromkeys(Dimension, 0.05)
    judges = {r: ReferenceJudge(r, tau).identity.model_dump(mode="json") for r in ROLES}
    found = {role: of | {"tau": {d.value: t for d, t in tau.items()}} for role, of in judges.items()}
    records.write_json(folder / "judge.json", found)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, scripts: list[Script]) -> Path:
    """A run with one held-out client that was not interrupted."""
    made, folder = Scorer(), run_dir(tmp_path_factory.mktemp("whole") / "a", scripts)
    try:
        heldout.main(CONFIG, overrides(folder, made, "rows=4", heldout_clients=1))
    finally:
        made.close()
    return folder


def overrides(folder: Path, scorer: Scorer, *more: str, heldout_clients: int = 8) -> list[str]:
    """Rule-based contestants in the place of the two policies."""
    splits = folder / "splits.yaml"
    sets = SPLITS.model_dump() | {"heldout": SPLITS.heldout[:heldout_clients]}
    if not splits.exists():
        records.write_json(splits, sets)  # JSON is YAML
    rules = [f"{side}={{name: {name}, kind: rules, family: {name}, rules: {name}, weights: null, prompt: null}}"
             for side, name in (("base", "adviser"), ("aligned", "explorer"))]  # fmt: skip
    return [f"run={folder}", f"splits={splits}", f"scorer_url={scorer.url}", "scorer_timeout_s=60", *rules, *more]


def made(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "heldout" / name).read_bytes() for name in MADE}


def untimed(folder: Path) -> list[str]:
    """Session ids, which leave usage out."""
    return [s.id for s in records.read(folder / "heldout" / "sessions.jsonl", Session)]


def test_two_policies_meet_the_held_out_clients(tmp_path: Path, scripts: list[Script], scorer: Scorer) -> None:
    folder = run_dir(tmp_path / "runs" / "a", scripts)
    heldout.main(CONFIG, overrides(folder, scorer))
    sessions = records.read(folder / "heldout" / "sessions.jsonl", Session)
    assert {s.profile_id for s in sessions} == set(SPLITS.heldout)
    assert len(sessions) == 8 * 2 * 2 and {s.split for s in sessions} == {"heldout"}
    battles = records.read(folder / "heldout" / "battles.jsonl", Battle)
    assert len(battles) == 2 * 8 * (4 + 1)  # two judges; aligned against base, base against base
    rewards = records.read(folder / "heldout" / "rewards.jsonl", paired_rewards.PromptRewards)
    assert len(rewards) == 2 * 8 * 4 and {len(r.replies) for r in rewards} == {4}
    assert {(r.session, r.turn) for r in rewards if r.policy == "adviser"} == {
        (r.session, r.turn) for r in rewards if r.policy == "explorer"
    }
    found = records.read_json(folder / "heldout" / "summary.json")
    for row in (found["overall"], *found["dimensions"].values()):
        assert row["win"] + row["tie"] + row["loss"] == pytest.approx(1) and row["n"] == 8
        assert row["low"] <= row["score"] <= row["high"] and row["judge"] == "reference-judge"
    assert found["shadow"]["overall"]["judge"] == "reference-shadow"
    assert found["base_vs_base"]["overall"]["battles"] == 8
    assert found["reward"]["difference"] == pytest.approx(found["reward"]["after"] - found["reward"]["before"])
    assert found["reward"]["prompts"] == 32 and found["failures"] == {"n": 0, "share": 0.0, "judgements": 80}
    assert found["opened"] == 1 and len(records.read_json(folder.parent / "openings.json")) == 1
    assert "not a statement of safety" in " ".join(found["words"]) and found["warnings"] == []
    assert len(report_data.headline(found)) == 4
    assert len(report_data.transcripts(sessions, found)["turns"]) == len(sessions[0].turns)


def test_a_client_whom_the_base_met_once_is_not_compared_but_its_sessions_are_kept_for_the_floor() -> None:
    made = [session("p", identity("base"), seed=n) for n in (1, 2)] + [session("q", identity("base"), seed=1)]
    made += [session(client, identity("aligned"), seed=1) for client in ("p", "q")]
    everything = heldout.by_policy(made, "base")
    assert [s.profile_id for s in everything["aligned"]] == ["p", "q"]
    assert {side: [s.profile_id for s in of] for side, of in heldout.compared(everything).items()} == {
        "base": ["p", "p"], "aligned": ["p"]
    }  # fmt: skip


def test_local_weights_and_a_prompt_of_its_own_are_what_a_policy_is(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "own.txt"):
        (tmp_path / name).write_text("x")
    entry = TherapistEntry(name="a", kind="local", family="f", weights=str(tmp_path), prompt=str(tmp_path / "own.txt"))
    assert {p.name for p in policy_files(entry)} == {"config.json", "model.safetensors", "own.txt"}
    assert policy_files(entry.model_copy(update={"weights": "smollm2", "prompt": "paper"})) == []


def test_what_is_done_is_done_and_another_config_is_refused(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any
) -> None:
    folder = run_dir(tmp_path / "runs" / "a", scripts)
    arguments = overrides(folder, scorer, heldout_clients=1)
    assert cli(["heldout", CONFIG, *arguments]) == 0
    before, asked = made(folder), len(scorer.groups)
    assert cli(["heldout", CONFIG, *arguments]) == 0
    assert made(folder) == before and len(scorer.groups) == asked
    assert cli(["heldout", CONFIG, *arguments, "samples=2"]) == 2
    assert "samples: was 4, is 2" in capsys.readouterr().err
    assert made(folder) == before


def test_the_stage_is_done_before_torch_is_imported(tmp_path: Path, scripts: list[Script], scorer: Scorer) -> None:
    folder = run_dir(tmp_path / "runs" / "a", scripts)
    arguments = overrides(folder, scorer, heldout_clients=1)
    heldout.main(CONFIG, arguments)
    call = f"heldout.main({CONFIG!r}, {arguments!r})"
    code = f"import sys; from tournament import heldout; {call}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("where", ["sessions", "battles", "rewards", "summary"])
def test_after_an_interruption_nothing_is_asked_twice(
    tmp_path: Path, whole: Path, scripts: list[Script], scorer: Scorer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = run_dir(tmp_path / "runs" / "a", scripts)
    arguments = overrides(folder, scorer, "rows=4", heldout_clients=1)
    model = {"sessions": TurnRecord, "battles": Battle, "rewards": paired_rewards.PromptRewards}.get(where)
    with monkeypatch.context() as patch:
        interrupt(patch, model)
        with pytest.raises(KeyboardInterrupt):
            heldout.main(CONFIG, arguments)
    assert not (folder / "heldout" / "summary.json").exists()
    heldout.main(CONFIG, arguments)
    assert len(scorer.groups) == 2 * 4 + (where == "rewards")  # the one that was not yet written
    assert untimed(folder) == untimed(whole)
    same = ("scripts.jsonl", "battles.jsonl", "rewards.jsonl", "summary.json")
    assert {n: made(folder)[n] for n in same} == {n: made(whole)[n] for n in same}
    assert len(records.read_json(folder.parent / "openings.json")) == 1


def interrupt(patch: pytest.MonkeyPatch, model: Any) -> None:
    """Stop at the third record of `model`, or before summary.json."""
    if model is None:

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(heldout.summary, "summarise", stop)
        return
    appended, append = [], records.Appender.append

    def counted(self: records.Appender, *made: Any) -> None:
        appended.extend(r for r in made if isinstance(r, model))
        if len(appended) > 2:
            raise KeyboardInterrupt
        append(self, *made)

    patch.setattr(records.Appender, "append", counted)


def test_a_killed_stage_goes_on(tmp_path: Path, scripts: list[Script], scorer: Scorer) -> None:
    folder = run_dir(tmp_path / "runs" / "a", scripts)
    arguments = overrides(folder, scorer, "rows=4", heldout_clients=2)
    scorer.answered_at_once = 5  # of sixteen: however late the kill, it comes before the end
    child = subprocess.Popen(
        [sys.executable, "-m", "psychepass.cli", "heldout", CONFIG, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    path = folder / "heldout" / "rewards.jsonl"
    deadline = time.monotonic() + 400
    while not (path.is_file() and path.read_bytes().count(b"\n") >= 3):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    written = path.read_bytes()
    kept = written[: written.rfind(b"\n") + 1]
    scorer.go_on.set()
    heldout.main(CONFIG, arguments)
    assert path.read_bytes().startswith(kept)
    assert len(records.read(path, paired_rewards.PromptRewards)) == 16
    assert len(records.read_json(folder.parent / "openings.json")) == 1
    assert records.read_json(folder / "manifests" / "heldout.json")["starts"] == 2


def test_tiny_models_answer_and_the_policy_is_taken_from_the_run(
    tmp_path: Path, scripts: list[Script], scorer: Scorer
) -> None:
    folder = run_dir(tmp_path / "runs" / "a", scripts)
    base = tiny_model(tmp_path, seed=1)
    tiny_model(tmp_path / "made", seed=2).rename(folder / "policy")
    sides = [f"{side}={{name: {name}, kind: local, family: tiny, weights: {weights}, prompt: paper, rules: null}}"
             for side, name, weights in (("base", "tiny", base), ("aligned", "aligned", "policy"))]  # fmt: skip
    small = ["sampling.max_tokens=6", "prompts=2", "samples=2"]
    heldout.main(CONFIG, [*overrides(folder, scorer, heldout_clients=1), *sides, *small])
    rewards = records.read(folder / "heldout" / "rewards.jsonl", paired_rewards.PromptRewards)
    assert {r.policy for r in rewards} == {"tiny", "aligned"} and len({r.weights for r in rewards}) == 2
    found = records.read_json(folder / "heldout" / "summary.json")
    assert found["reward"]["low"] is None and found["reward"]["n"] == 1  # one client bounds nothing
    manifest = records.read_json(folder / "manifests" / "heldout.json")
    assert "policy/model.safetensors" in manifest["inputs"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "judge.json").unlink(), "judge.json: stage heldout needs this file"),
        (lambda folder: edit_judge(folder), "was frozen with rubric_version 'other'"),
        (lambda folder: add_heldout(folder), "has spoken in this run before"),
    ],
)
def test_bad_input_is_named_before_the_set_is_opened(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any, change: Any, said: str
) -> None:
    folder = run_dir(tmp_path / "runs" / "a", scripts)
    change(folder)
    assert cli(["heldout", CONFIG, *overrides(folder, scorer, heldout_clients=1)]) == 2
    assert said in capsys.readouterr().err
    assert not (folder.parent / "openings.json").exists() and not scorer.groups


def test_a_seed_twice_is_refused_before_the_set_is_opened(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any
) -> None:
    folder = run_dir(tmp_path / "runs" / "a", scripts)
    assert cli(["heldout", CONFIG, *overrides(folder, scorer, "seeds=[1,1]", heldout_clients=1)]) == 2
    assert "seeds: 1 is there more than once" in capsys.readouterr().err
    assert not (folder.parent / "openings.json").exists() and not scorer.groups


def edit_judge(folder: Path) -> None:
    judges = records.read_json(folder / "judge.json")
    judges["judge"]["rubric_version"] = "other"
    records.write_json(folder / "judge.json", judges)


def add_heldout(folder: Path) -> None:
    script = build_script(load_profiles()[SPLITS.heldout[0]], "short")
    records.write(folder / "scripts.jsonl", [script])


def test_a_scorer_that_is_down_or_changed_and_a_missing_policy_are_named(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any
) -> None:
    folder = run_dir(tmp_path / "runs" / "a", scripts)
    arguments = overrides(folder, scorer, heldout_clients=1)
    assert cli(["heldout", CONFIG, *arguments, "scorer_url=http://127.0.0.1:9", "scorer_timeout_s=0.2"]) == 2
    assert "no healthy scorer at http://127.0.0.1:9" in capsys.readouterr().err
    assert not (folder.parent / "openings.json").exists()
    heldout.main(CONFIG, arguments)
    rewards = folder / "heldout" / "rewards.jsonl"
    rewards.write_text("".join(rewards.read_text().splitlines(keepends=True)[:2]))
    (folder / "manifests" / "heldout.json").unlink()
    scorer.model = "rm-other"
    assert cli(["heldout", CONFIG, *arguments]) == 2
    assert "rewards of model 'rm-test', the scorer now is 'rm-other'" in " ".join(capsys.readouterr().err.split())
    fresh = run_dir(tmp_path / "runs" / "b", scripts)
    assert cli(["heldout", CONFIG, f"run={fresh}"]) == 2
    assert "run psychepass grpo first" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["heldout.yaml", "quickstart/heldout.yaml"])
def test_the_shipped_configs_load_and_differ_in_weights_alone(path: str) -> None:
    config = configs.load(heldout.HeldoutConfig, ROOT / "configs" / path)
    simulate = configs.read_tree(ROOT / "configs" / path.replace("heldout", "simulate"))
    base, aligned = config.base.model_dump(), config.aligned.model_dump()
    assert [k for k in base if base[k] != aligned[k]] == ["name", "weights"]
    assert config.aligned.weights == "policy"
    assert simulate["target_words"] == config.target_words and simulate["form"] == config.form
    assert simulate["sampling"] == config.sampling.model_dump()
    assert {k: v for k, v in base.items() if v is not None} in simulate["therapists"]
