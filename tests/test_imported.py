"""Outside preference data: rows as `datasets` and TRL use them become pairs that train and test a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from psychepass import records
from psychepass.cli import main as cli
from psychepass.schema import Dimension, PreferencePair, Session
from reward_model import baselines
from reward_model import model as models
from reward_model.data import Ask, Tally, client_steps, encode, encode_session
from tests.made import battle, identity, session
from tests.tiny import tiny_model, tiny_tokenizer
from training.imported import checked_rows, clients_to_test, records_of
from training.pairs import REWARDED, pairs_of, preference_rows
from training.render import Renderer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


GOOD = {"prompt": [user("Nobody asks.")], "chosen": [reply("That hurts.")], "rejected": [reply("Try a hobby.")]}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def import_pairs(folder: Path, file: Path, **changes: Any) -> tuple[int, Path]:
    run = folder / "run"
    config = folder / "import.yaml"
    config.write_text(
        json.dumps({"run": str(run), "file": str(file), "dimension": "empathy", "test_share": 0.5} | changes)
    )
    return cli(["import-pairs", str(config)]), run


def made_rows(clients: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [user(f"I am client {c}."), reply("Go on."), user("It is turn two.")],
            "chosen": [reply("You feel tired, and you miss her.")],
            "rejected": [reply("Nobody is frightened of total failure.")],
            "dimension": d,
            "client": f"c{c}",
        }
        for c in range(clients)
        for d in ("empathy", "crisis")
    ]


def imported(rows: list[dict[str, Any]], test_share: float) -> list[PreferencePair]:
    checked = checked_rows(rows, "f", "empathy")
    return records_of(checked, "f", clients_to_test((r.client for r in checked), test_share))[0]


def test_explicit_and_implicit_prompts_are_the_same_pair() -> None:
    implicit = {k: GOOD["prompt"] + GOOD[k] for k in ("chosen", "rejected")}
    with_system = {k: [{"role": "system", "content": "Quality"}, *implicit[k]] for k in implicit}
    rows = checked_rows([GOOD, implicit, with_system], "f", "empathy")
    assert len({r._replace(number=0) for r in rows}) == 1
    pairs, sessions = records_of(rows, "f", ())
    assert len(sessions) == 2 and [p.battles for p in pairs] == [("f:1",), ("f:2",), ("f:3",)]
    (chosen,) = (s for s in sessions if s.id == pairs[0].chosen.session)
    assert [(t.client, t.therapist) for t in chosen.turns] == [("Nobody asks.", "That hurts.")]
    assert pairs[0].chosen.turns == (1,) and pairs[0].dimension is Dimension.EMPATHY


def test_several_turns_and_two_histories_are_kept() -> None:
    row = {
        "chosen": [user("a"), reply("b"), user("c"), reply("d")],
        "rejected": [user("a"), reply("x"), user("c"), reply("y")],
        "dimension": "memory",
        "weight": 0.5,
    }
    pairs, sessions = records_of(checked_rows([row], "f", "empathy"), "f", ())
    said = {s.id: [t.therapist for t in s.turns] for s in sessions}
    assert said[pairs[0].chosen.session] == ["b", "d"] and said[pairs[0].rejected.session] == ["x", "y"]
    assert pairs[0].chosen.turns == pairs[0].rejected.turns == (2,)
    assert (pairs[0].dimension, pairs[0].weight) == (Dimension.MEMORY, 0.5)


def test_clients_are_split_whole_and_without_names_the_first_line_is_the_unit() -> None:
    rows = [GOOD | {"prompt": [user(f"line {i % 10}")], "chosen": [reply(f"reply {i}")]} for i in range(40)]
    pairs = imported(rows, 0.3)
    split = {p.profile_id: p.split for p in pairs}
    assert len(split) == 10 and sorted(split.values()).count("test") == 3
    assert all(split[p.profile_id] == p.split for p in pairs)
    assert {p.profile_id: p.split for p in imported(rows[::-1], 0.3)} == split
    named = imported([r | {"client": i % 4} for i, r in enumerate(rows)], 0.01)
    assert {p.profile_id for p in named} == {"0", "1", "2", "3"}
    assert len({p.profile_id for p in named if p.split == "test"}) == 1
    assert {p.split for p in imported(rows, 1.0)} == {"test"}


def test_our_own_export_comes_back_with_the_same_rewards(tmp_path: Path) -> None:
    """Pairs of single turns, exported for TRL and imported again: the model's rewards are those of the original."""
    a, b = session("p1", identity("a")), session("p1", identity("b"))
    sessions = {s.id: s for s in (a, b)}
    local = dict.fromkeys((d for d in Dimension if not d.is_global), "A")
    pairs = pairs_of([battle(a, b, local)], sessions)
    rows = [r | {"client": "p1"} for r in preference_rows(pairs, sessions)]
    write_rows(tmp_path / "rows.jsonl", rows)
    code, run = import_pairs(tmp_path, tmp_path / "rows.jsonl", test_share=0.0)
    assert code == 0
    back = records.read(run / "pairs.jsonl", PreferencePair)
    assert [p.dimension for p in back] == [p.dimension for p in pairs]
    back_sessions = {s.id: s for s in records.read(run / "sessions.jsonl", Session)}
    model = models.from_base(tiny_model(tmp_path), 2, seed=0).eval()
    render = Renderer(tiny_tokenizer(), 2048, 128)
    found = []
    for of, in_sessions in ((pairs, sessions), (back, back_sessions)):
        (step,) = client_steps(of, in_sessions, render)
        with torch.inference_mode():
            rewards_S = torch.cat([model(tree) for tree in step.trees])
        found.append(step.chosen_PS @ rewards_S - step.rejected_PS @ rewards_S)
    assert torch.allclose(found[0], found[1], atol=2e-6) and found[0].abs().min() > 1e-4


def test_replies_to_one_prompt_share_it_and_score_the_same(tmp_path: Path) -> None:
    """Three replies to one prompt in two pairs, one of them on two dimensions; a prompt of its own beside them."""
    prompt = [user("I am so tired when I come home."), reply("Go on."), user("It is turn two.")]
    said = [reply(text) for text in ("You feel tired, and you miss her.", "Try a hobby.", "Nobody asks you at home?")]
    rows = [
        {"prompt": prompt, "chosen": [said[0]], "rejected": [said[1]]},
        {"prompt": prompt, "chosen": [said[0]], "rejected": [said[2]], "dimension": "crisis"},
        {"prompt": prompt[:1], "chosen": [said[2]], "rejected": [said[1]]},
    ]
    pairs, found = records_of(checked_rows([r | {"client": "c"} for r in rows], "rows", "empathy"), "rows", set())
    sessions = {s.id: s for s in found}
    model = models.from_base(tiny_model(tmp_path), 2, seed=0).eval()
    for budget, trees in ((400, 2), (60, 4)):  # where a reply does not fit into one window, its prompt is not shared
        render = Renderer(tiny_tokenizer(), budget, 30)
        read = Tally()
        (step,) = client_steps(pairs, sessions, render, read)
        assert (read.sessions, read.replies, read.cut_replies > 0) == (len(sessions), len(sessions), budget == 60)
        naive = baselines.naive(pairs, sessions, render)
        assert len(step.trees) == trees and len(naive.trees) == 6
        with torch.inference_mode():
            ours, want = (torch.cat([model(tree) for tree in s.trees]) for s in (step, naive))
        assert (step.chosen_PS @ ours - naive.chosen_PS @ want).abs().max() <= 2e-6
        assert (step.rejected_PS @ ours - naive.rejected_PS @ want).abs().max() <= 2e-6
        assert want.std() > 1e-3


def test_an_empty_reply_shares_the_prompt_too(tmp_path: Path) -> None:
    """As rm-eval asks: each reply, and the context alone."""
    _, found = records_of(checked_rows([GOOD], "rows", "empathy"), "rows", set())
    both = [Ask(1, d, said) for d in (Dimension.CRISIS, Dimension.ETHICS) for said in (True, False)]
    asks = {s.id: both for s in found}
    render = Renderer(tiny_tokenizer(), 400, 30)
    model = models.from_base(tiny_model(tmp_path), 2, seed=0).eval()
    ((trees, order),) = encode(asks, {s.id: s for s in found}, render)
    assert len(trees) == 1 and len(order) == 8
    with torch.inference_mode():
        together = dict(zip(order, model(trees[0]), strict=True))
        for s in found:
            (alone,), places = encode_session(s, asks[s.id], render)
            for ask, reward in zip(places, model(alone), strict=True):
                assert abs(together[s.id, ask] - reward) <= 2e-6


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_imported_file_trains_and_tests_a_model(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(made_rows()), file)
    else:
        write_rows(file, made_rows())
    code, run = import_pairs(tmp_path, file)
    assert code == 0
    assert records.read_json(run / "manifests" / "import-pairs.json")["notes"]["clients"] == {"train": 3, "test": 3}
    from tests.test_reward_model import write_config

    assert cli(["rm", str(write_config(tmp_path, run, tiny_model(tmp_path), epochs=4))]) == 0
    card = (run / "reward_model" / "README.md").read_text()
    assert "6 imported pairs of 3 clients" in card and "fictional" not in card and "machine-written" not in card
    assert "does not replace a clinician" in card
    (tmp_path / "eval.yaml").write_text(json.dumps({"run": str(run)}))
    assert cli(["rm-eval", str(tmp_path / "eval.yaml")]) == 0
    metrics = records.read_json(run / "reward_model" / "metrics.json")
    assert (metrics["accuracy"], metrics["n"], metrics["n_clients"]) == (1.0, 6, 3)
    assert set(metrics["dimensions"]) == {"empathy", "crisis"}
    assert metrics["longer_wins"]["value"] == 1.0 and metrics["context_only"]["value"] == 0.5
    assert metrics["which_therapist"] is None and metrics["same_family"] is None and metrics["pairs_with"] == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": None}, "row 2: chosen is missing; permitted: a list of"),
        ({"prompt": []}, "row 2: chosen: the conversation's roles are ['assistant']; permitted"),
        ({"prompt": [reply("Hello.")]}, "roles are ['assistant', 'assistant']"),
        ({"chosen": [reply("One."), user("Two.")]}, "roles are ['user', 'assistant', 'user']"),
        ({"chosen": [reply("  ")]}, "row 2: chosen: the last reply is empty"),
        ({"rejected": GOOD["chosen"]}, "row 2: rejected is the same as chosen"),
        ({"rejected": [reply(GOOD["chosen"][0]["content"] + " \n")]}, "row 2: rejected is the same as chosen"),
        (
            {"prompt": None, "chosen": [user("a"), reply("b")], "rejected": [user("c"), reply("d")]},
            "row 2: rejected begins with another client line than chosen",
        ),
        (
            {"chosen": [{"role": "therapist", "content": "a"}]},
            "message 1: role is 'therapist'; permitted: system",
        ),
        (
            {"chosen": [{"role": "assistant", "content": None}]},
            "message 1: content is missing; permitted: a text",
        ),
        ({"dimension": "charm"}, "row 2: dimension is 'charm'; permitted: empathy, discernment"),
        ({"dimension": "diversity"}, "row 2: dimension is 'diversity'; permitted"),
        ({"weight": 0.0}, "row 2: weight is 0.0; permitted: a number above 0 and at most 1"),
        ({"client": "c"}, "row 1: client is missing; permitted: a name or number, in every row or in none"),
    ],
)
def test_a_bad_row_is_one_clear_error(change: dict[str, Any], said: str, tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [GOOD, GOOD | change])
    code, run = import_pairs(tmp_path, file)
    error = capsys.readouterr().err
    assert code == 2 and said in error and "rows.jsonl, row " in error
    assert not (run / "pairs.jsonl").exists() and not (run / "manifests" / "import-pairs.json").exists()


def test_text_instead_of_messages_is_one_clear_error(tmp_path: Path, capsys: Any) -> None:
    plain = {"prompt": "Nobody asks.", "chosen": "That hurts.", "rejected": "Try a hobby."}
    code, _ = import_pairs(tmp_path, write_rows(tmp_path / "rows.jsonl", [plain]))
    assert code == 2 and "row 1: prompt is 'Nobody asks.'; permitted: a list of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.jsonl", '{"chosen": [', "`datasets` cannot read it as json"),
        ("rows.parquet", "not parquet", "`datasets` cannot read it as parquet"),
        ("rows.jsonl", "", "rows.jsonl: no row"),
        ("rows.jsonl", json.dumps(GOOD).replace("hurts", "h\xe9") + "\n", "rows.jsonl: not UTF-8 ('utf-8' codec can't"),
        ("rows.csv", "a,b\n", "a file of kind '.csv'; permitted: .jsonl, .json, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(
    name: str, text: str, said: str, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    code, _ = import_pairs(tmp_path, tmp_path / name)
    error = capsys.readouterr().err
    assert code == 2 and said in error and len(error.strip().splitlines()[-1]) < 600


def test_a_missing_file_and_a_wrong_default_are_named(tmp_path: Path, capsys: Any) -> None:
    assert import_pairs(tmp_path, tmp_path / "no.jsonl")[0] == 2
    assert "no.jsonl: stage import-pairs needs this file" in capsys.readouterr().err
    file = write_rows(tmp_path / "rows.jsonl", [GOOD])
    assert import_pairs(tmp_path, file, dimension="overall")[0] == 2
    assert f"dimension is 'overall'; permitted: {', '.join(REWARDED)}" in capsys.readouterr().err


def test_the_records_of_another_stage_are_not_written_over(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [GOOD])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sessions.jsonl").write_text("mine\n")
    assert import_pairs(tmp_path, file)[0] == 2
    assert "need a run directory of their own" in capsys.readouterr().err
    assert (tmp_path / "run" / "sessions.jsonl").read_text() == "mine\n"
