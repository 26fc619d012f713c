"""The scorer over real HTTP on the loopback: equal rewards, clear refusals, and a client that refuses nonsense."""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import torch
from pydantic import ValidationError

from psychepass import records, scoring
from psychepass.errors import UserError
from psychepass.schema import Dimension, Message
from psychepass.scoring import ScoreGroup, Scorer, _refusal
from reward_model import model as models
from reward_model import serve
from reward_model.scorer import GroupScorer
from reward_model.serve import listen, make_app, server_of
from tests.tiny import tiny_model, tiny_tokenizer
from training.render import Renderer


def group(
    *lines: str, responses=("You feel tired.", "Go on."), dimensions=("empathy", "crisis", "memory")
) -> ScoreGroup:
    context = tuple(
        Message(role="assistant" if i % 2 else "user", content=x) for i, x in enumerate(lines or ("Hello.",))
    )
    return ScoreGroup(context=context, responses=responses, dimensions=tuple(Dimension(d) for d in dimensions))


GROUPS = [
    group("I can't sleep.", "You lie awake.", "Yes, every night."),
    group("Nobody asks.", responses=("", "That hurts.", "What do you miss?"), dimensions=("trauma",)),
]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> GroupScorer:
    base = tiny_model(tmp_path_factory.mktemp("serve"))
    model = models.from_base(base, 2, seed=0)
    return GroupScorer(model, Renderer(tiny_tokenizer(), 256, 64), "tiny-rm@0")


@contextmanager
def served(scorer: GroupScorer, max_waiting: int = 64, port: int = 0):
    listener = listen("127.0.0.1", port)
    server = server_of(make_app(scorer, max_waiting))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def url(scorer):
    with served(scorer) as address:
        yield address


@contextmanager
def answering(*answers: tuple[int, object]):
    """A server that gives these answers to POST in turn, the last one for ever."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = left.pop(0) if len(left) > 1 else left[0]
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- the service -------------------------------------------------------------------------------


def test_served_rewards_equal_those_in_process_exactly(scorer, url):
    client = Scorer(url, 120)
    assert client.score(GROUPS) == scorer.score(GROUPS)
    assert client.model == "tiny-rm@0" == client.health()
    assert asyncio.run(client.ascore(GROUPS)) == scorer.score(GROUPS)
    assert client.score([]) == []


def test_partial_groups_score_the_same(scorer):
    whole = scorer.score(GROUPS[:1])[0]
    part = scorer.score([GROUPS[0].model_copy(update={"responses": GROUPS[0].responses[1:]})])[0]
    assert part[0] == pytest.approx(whole[1], abs=2e-6)


def test_rewards_under_load_are_those_of_a_group_alone(scorer, url):
    """Four callers ask about each conversation at once, reply by reply and turn by turn."""
    lines = [f"Line {n} of mine." for n in range(7)]
    asked = [
        group(*lines[: 2 * (n % 4) + 1], responses=tuple(f"Reply {i} to you." for i in range(n % 3 + 1)))
        for n in range(16)
    ]
    alone = [scorer.score([g]) for g in asked]
    with ThreadPoolExecutor(16) as pool:
        loaded = list(pool.map(lambda g: Scorer(url, 120).score([g]), asked))
    for one, many in zip(alone, loaded, strict=True):
        assert many[0] == [pytest.approx(row, abs=2e-6) for row in one[0]]
    values = [row[0] for groups in alone for row in groups[0]]
    assert max(values) - min(values) > 1e-3, "another group's rewards would show"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "groups: Field required"),
        ({"groups": [{"context": [], "responses": ["a"], "dimensions": ["empathy"]}]}, "groups.0.context"),
        (
            {"groups": [{"context": [{"role": "user", "content": "a"}], "responses": [], "dimensions": ["empathy"]}]},
            "at least 1",
        ),
        (
            {"groups": [{"context": [{"role": "user", "content": "a"}], "responses": ["a"], "dimensions": ["charm"]}]},
            "'charm'",
        ),
        (
            {
                "groups": [
                    {"context": [{"role": "assistant", "content": "a"}], "responses": ["a"], "dimensions": ["crisis"]}
                ]
            },
            "context must be user",
        ),
        (
            {
                "groups": [
                    {"context": [{"role": "user", "content": "a"}], "responses": ["a " * 99], "dimensions": ["crisis"]}
                ]
            },
            "longer than max_response = 64",
        ),
    ],
)
def test_bad_input_gets_422_and_one_sentence(url, body, said):
    reply = httpx.post(f"{url}/score", json=body, trust_env=False, timeout=60.0)
    assert reply.status_code == 422
    assert said in reply.json()["error"] and "\n" not in reply.json()["error"]


def test_text_that_is_not_json_gets_422(url):
    headers = {"content-type": "application/json"}
    reply = httpx.post(f"{url}/score", content=b"{nope", headers=headers, trust_env=False, timeout=60.0)
    assert reply.status_code == 422 and "JSON" in reply.json()["error"]


def test_overload_is_503_with_a_time_and_the_client_tries_again(scorer, monkeypatch):
    body = {"groups": [g.model_dump(mode="json") for g in GROUPS]}
    begun, score_tree = threading.Event(), scorer.score_tree
    monkeypatch.setattr(scorer, "score_tree", lambda groups: begun.set() or score_tree(groups))
    with served(scorer, max_waiting=3) as address:
        scorer._lock.acquire()
        try:
            with ThreadPoolExecutor(3) as pool:
                waiting = [pool.submit(Scorer(address, 120).score, GROUPS)]
                assert begun.wait(60)  # its first group is under way: a health check's own group waits for nothing
                waiting.append(pool.submit(Scorer(address, 120).score, GROUPS))
                deadline = time.monotonic() + 60
                while (seen := health(address))["waiting"] != 3 or seen["busy_s"] == 0:
                    assert time.monotonic() < deadline, seen
                    time.sleep(0.02)
                assert seen["waiting"] == 3 and seen["status"] == "ok" and seen["busy_s"] > 0
                refused = httpx.post(f"{address}/score", json=body, trust_env=False, timeout=60.0)
                later = pool.submit(Scorer(address, 120).score, GROUPS)
                time.sleep(0.2)
                assert not later.done()
                scorer._lock.release()
                results = [f.result() for f in (*waiting, later)]
        finally:
            if scorer._lock.locked():
                scorer._lock.release()
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        assert refused.json() == {"error": "3 groups are waiting; send this request again in 1 s"}
        alone = scorer.score(GROUPS)
        for rewards in results:
            for found, expected in zip(rewards, alone, strict=True):
                assert found == [pytest.approx(row, abs=2e-6) for row in expected]


def test_callers_of_a_service_that_is_told_to_stop_get_their_rewards_from_the_next_one(scorer, monkeypatch):
    begun, go_on, score_tree = threading.Event(), threading.Event(), scorer.score_tree
    monkeypatch.setattr(scorer, "score_tree", lambda groups: begun.set() or (go_on.wait(60) and score_tree(groups)))
    with ThreadPoolExecutor(2) as pool:
        with served(scorer) as address:
            under_way = pool.submit(Scorer(address, 120).score, GROUPS[:1])
            assert begun.wait(60)
            queued = pool.submit(Scorer(address, 120).score, GROUPS)
            deadline = time.monotonic() + 60
            while health(address)["waiting"] != len(GROUPS):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            threading.Timer(3.0, go_on.set).start()  # the pass under way outlasts the second that answers are given
        assert not under_way.done() and not queued.done()
        with served(scorer, port=int(address.rsplit(":")[-1])):
            found, more = under_way.result(), queued.result()
    assert found[0] == [pytest.approx(row, abs=2e-6) for row in scorer.score(GROUPS[:1])[0]]
    for rewards, expected in zip(more, scorer.score(GROUPS), strict=True):
        assert rewards == [pytest.approx(row, abs=2e-6) for row in expected]


def health(address: str) -> dict:
    return httpx.get(f"{address}/health", trust_env=False, timeout=60.0).json()


def test_health_names_the_model_and_says_when_it_does_not_answer(scorer, monkeypatch):
    with served(scorer) as address:
        said = health(address)
        assert 0 <= said.pop("busy_s") < serve.STUCK_S
        assert said == {"status": "ok", "model": "tiny-rm@0", "waiting": 0, "dimensions": None}
        monkeypatch.setattr(serve, "PROBE_S", 0.3)
        with scorer._lock:
            assert health(address)["status"] == "ok", "a pass that has only begun"
            monkeypatch.setattr(serve, "STUCK_S", 0.0)
            told = health(address)["error"]
            assert re.search(r"tiny-rm@0 has been busy with one pass for \d+ s; 0 wait", told), told
            with pytest.raises(UserError, match="status 503"):
                Scorer(address, 120).health()


def test_a_dimension_that_was_never_trained_is_answered_and_said_once(scorer, tmp_path, capsys):
    taught = GroupScorer(scorer.model, scorer.renderer, "tiny-rm@0", dimensions=(Dimension.EMPATHY, Dimension.CRISIS))
    with served(taught) as address:
        assert health(address)["dimensions"] == ["empathy", "crisis"]
        assert Scorer(address, 120).warnings(Dimension) == [], "its health was not asked for"
        client = Scorer.of_run(tmp_path, address)
        assert client.warnings([Dimension.CRISIS, Dimension.EMPATHY]) == []
        assert client.warnings([Dimension.MEMORY, Dimension.EMPATHY, Dimension.MEMORY]) == [
            "Reward model tiny-rm@0 was never trained on memory: its rewards there mean nothing."
        ]
        for _ in range(2):
            assert Scorer(address, 120).score(GROUPS[:1]) == scorer.score(GROUPS[:1])
    said = capsys.readouterr().err
    assert said.count("never trained on memory") == 1 and "trained on crisis" not in said


def test_a_reward_that_is_not_finite_is_an_error_of_the_service(tmp_path):
    model = models.from_base(tiny_model(tmp_path), 1, seed=0)
    torch.nn.init.constant_(model.head.weight, math.nan)
    broken = GroupScorer(model, Renderer(tiny_tokenizer(), 256, 64), "tiny-rm@nan")
    with pytest.raises(FloatingPointError, match="tiny-rm@nan gave a reward that is not finite"):
        broken.score(GROUPS)
    with served(broken) as address:
        with pytest.raises(UserError, match=r"status 500: .*not finite"):
            Scorer(address, 120).score(GROUPS)
        deadline = time.monotonic() + 120
        with pytest.raises(UserError, match=r"status 503: .*does not answer: .*not finite"):
            while time.monotonic() < deadline:  # while the next group's pass is under way, a busy model is not asked
                Scorer(address, 120).health()


def test_a_taken_port_is_one_clear_error():
    with served_port() as port, pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
        listen("127.0.0.1", port)


@contextmanager
def served_port():
    taken = listen("127.0.0.1", 0)
    try:
        yield taken.getsockname()[1]
    finally:
        taken.close()


# --- the client --------------------------------------------------------------------------------


def test_groups_must_end_with_the_client():
    with pytest.raises(ValidationError, match="context must be user"):
        group("Hello.", "Hi.")
    with pytest.raises(ValidationError, match="context must be user"):
        ScoreGroup(context=(Message(role="system", content="x"),), responses=("a",), dimensions=(Dimension.EMPATHY,))


def test_a_scorer_that_is_down_is_named_within_the_time_limit(tmp_path):
    begun = time.monotonic()
    with socket.socket() as silent:  # nobody else is given its port, and it does not listen
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"scorer {address} gave no rewards within 0.3 s \(last: ConnectError"):
            Scorer(address, 0.3).score(GROUPS)
        with pytest.raises(UserError, match=r"no rewards within 0.3 s"):
            asyncio.run(Scorer(address, 0.3).ascore(GROUPS))
        with pytest.raises(UserError, match=f"no healthy scorer at {address} within 0.3 s"):
            Scorer.of_run(tmp_path, address, 0.3)
    with pytest.raises(UserError, match=r"no healthy scorer at the address in .*scorer.json within 0.3 s"):
        Scorer.of_run(tmp_path, timeout_s=0.3)
    assert time.monotonic() - begun < 60  # without a limit of its own a call waits for two minutes


def test_another_model_at_the_address_is_refused(url, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "_pauses", lambda deadline: iter([0.0]))  # it looks once
    records.write_json(tmp_path / "scorer.json", {"url": url, "pid": 1, "model": "other"})
    with pytest.raises(UserError, match="answers for model 'tiny-rm@0', not 'other'"):
        Scorer.of_run(tmp_path)
    with pytest.raises(UserError, match="changed its model from 'other' to 'tiny-rm@0'"):
        Scorer(url, 120, model="other").score(GROUPS)


def test_a_busy_scorer_is_asked_again_when_it_says():
    def answer(wait: str) -> tuple[str, float]:
        reply = httpx.Response(503, headers={"Retry-After": wait}, text="busy")
        return _refusal(reply, 0.2, time.monotonic() + 1000)

    assert answer("2") == ("status 503: busy", 2.0)
    assert answer("0")[1] == 0.2 and answer("Sun, 22 Nov 2026 05:00:00 GMT")[1] == 0.2
    assert 900 < answer("6000")[1] <= 1000, "never beyond the caller's own time limit"


def test_a_busy_scorer_is_asked_again():
    rewards = {"model": "m", "rewards": [[[1, 2, 3], [4, 5, 6]]]}
    with answering((503, {"error": "busy"}), (502, b"bad gateway"), (200, rewards)) as address:
        assert Scorer(address, 120).score(GROUPS[:1]) == [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "not JSON"),
        (200, ["m"], "expected 'model' and 'rewards'"),
        (200, {"rewards": []}, "expected 'model' and 'rewards'"),
        (200, {"model": "m", "rewards": []}, "expected rewards of 1 groups"),
        (200, {"model": "m", "rewards": [[[1, 2, 3]]]}, "are not 2 responses x 3 dimensions"),
        (200, {"model": "m", "rewards": [[[1, 2, 3], [1, 2]]]}, "are not 2 responses x 3 dimensions"),
        (200, {"model": "m", "rewards": [[[1, 2, 3], [1, 2, None]]]}, "holds None; a reward is a finite number"),
        (200, {"model": "m", "rewards": [[[1, 2, 3], [1, 2, "9"]]]}, "holds '9'"),
        (200, {"model": "m", "rewards": [[[1, 2, 3], [1, 2, True]]]}, "holds True"),
        (200, b'{"model": "m", "rewards": [[[1, 2, 3], [1, 2, NaN]]]}', "holds nan"),
        (200, b'{"model": "m", "rewards": [[[1, 2, 3], [1, 2, Infinity]]]}', "holds inf"),
        (422, {"error": "groups.0: too long"}, "status 422.*too long"),
        (500, b"oops", "status 500: oops"),
    ],
)
def test_nonsense_is_an_error_and_never_a_reward(status, body, said):
    with answering((status, body)) as address, pytest.raises(UserError, match=said):
        Scorer(address, 120).score(GROUPS[:1])
