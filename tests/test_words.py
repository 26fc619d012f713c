"""Words in English and Chinese: what is counted, what is compared, and what says that it reads English only."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from psychepass import records, words
from psychepass.cli import main as cli
from psychepass.errors import UserError
from psychepass.schema import Sampling, Script, Session
from psychepass.splits import check_heldout, shared_runs
from rollout_env.plan import plan_sessions
from rollout_env.rubrics.diversity import diversity
from rollout_env.script import build_script
from rollout_env.script_lint import lint
from rollout_env.script_source import bank_named
from rollout_env.script_writer import read_script, writer_prompt
from rollout_env.therapist import TherapistEntry
from tests import chinese_client
from tests.handmade import session_of, short_script
from tests.judge_rig import judges, write_run
from tests.script_server import SHIPPED
from tournament import drift
from tournament.audit_draw import names_itself
from tournament.heldout import reply_checks
from tournament.length_control import features
from tournament.reference_context import check_readable
from tournament.reference_judge import MIN_TAU, calibrate

SAID = "父亲走了以后，我还是会在周末多买一份豆腐，然后一个人坐在院子里。"


def chinese_script() -> Script:
    script, faults = read_script(json.dumps(chinese_client.lines()), chinese_client.PROFILE, bank_named("common"))
    assert script is not None, faults
    return script


def test_chinese_words_are_jiebas_and_english_ones_as_before() -> None:
    assert words.words("父亲走了以后，I'm 一个人。") == ["父亲", "走", "了", "以后", "i'm", "一个", "人"]
    assert words.words("Well: it's MY 2nd.") == ["well", "it's", "my", "2nd"] == words.signs("Well: it's MY 2nd.")
    assert words.signs("豆腐 ok") == ["豆", "腐", "ok"]
    assert words.spaced("plain, text") == "plain, text"
    assert words.word_count("one - two") == 3 and words.word_count("我很累，OK。") == 4
    assert words.language_of(["我在Google工作"]) == "zh"
    assert words.language_of(["She said 你好 to me and left."]) == words.language_of([]) == "en"


def test_a_run_of_eight_counts_chinese_words_not_characters() -> None:
    eight_signs = ["我想去周末的豆腐店", "她也想去周末的豆腐店"]  # nine characters, five words in common
    assert not shared_runs(eight_signs[:1], eight_signs[1:])
    longer = "她说，" + SAID
    shared = shared_runs([SAID], [longer])
    assert shared and all(len(run.split()) == 8 for run in shared)
    assert "我 还是 会 在 周末 多买 一份 豆腐" in shared


def test_held_out_chinese_clients_may_not_share_eight_words_with_the_rest() -> None:
    script = chinese_script()
    other = script.model_copy(update={"profile_id": "other"})
    of = {script.profile_id: "train", "other": "heldout"}
    with pytest.raises(
        UserError, match="other: the script's bank is 'common'; the set 'heldout' permits 'heldout' alone"
    ):
        check_heldout([script, other], of)
    with pytest.raises(UserError, match="runs of 8 words with the rest"):
        check_heldout([script, other.model_copy(update={"bank": "heldout"})], of)


def test_without_jieba_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    words.jieba.cache_clear()
    words._parted.cache_clear()
    with pytest.raises(UserError, match=r"Chinese text needs the package jieba: pip install jieba==0\.42\.1"):
        words.words("我很累")
    assert words.words("no Chinese here") == ["no", "chinese", "here"]


def test_a_chinese_line_may_not_name_its_need_or_technique() -> None:
    bank, script = bank_named("common"), chinese_script()
    assert lint(script, bank) == []
    turn = next(t for t in script.turns if t.evaluator.targets.get("need") == ("belonging",))
    told = turn.model_copy(update={"client": turn.client.model_copy(update={"trigger": "我只是想被接纳，有归属感。"})})
    turns = tuple(told if t is turn else t for t in script.turns)
    faults = lint(script.model_copy(update={"turns": turns}), bank)
    assert [f.split("): ")[-1] for f in faults] == ["names its need: '归属'", "names its need: '接纳'"]
    shown = writer_prompt(chinese_client.PROFILE, bank)
    assert "归属" in shown and "belong," not in shown
    assert "归属" not in writer_prompt(SHIPPED["tomasz-wilk"], bank)


def test_every_need_and_technique_has_chinese_words() -> None:
    for name in ("common", "heldout"):
        keys = {**bank_named(name).needs, **bank_named(name).techniques}
        assert all(k.words_zh and all(words.HAN.search(w) and len(w) > 1 for w in k.words_zh) for k in keys.values())


# --- counts over replies -------------------------------------------------------------------------


def test_diversity_drift_and_length_count_chinese_words() -> None:
    assert diversity(["你好 你好 你好"]) == diversity(["hello hello hello"]) == diversity(["你好，你好你好"])
    replies = "听起来你很累，你愿意多说说父亲吗？"
    session = session_of(short_script("ada"), "base", "train", lambda turn: replies)
    found = drift.measures(session)
    assert found["reply_words"] == len(words.words(replies))
    assert math.expm1(features(session)["log words a reply"]) == pytest.approx(found["reply_words"])
    assert found["reused_opening"] == 1 and found["unfinished"] == found["hotline"] == 0
    called = session_of(short_script("ada"), "base", "train", lambda turn: "请拨打120，或者心理援助热线。")
    assert drift.measures(called)["hotline"] > 0


def test_a_chinese_reply_that_names_its_model_is_seen() -> None:
    for said, names in (("我是Qwen，很高兴认识你。", True), ("我是通义千问。", True), ("我在这里。", False)):
        assert names_itself(session_of(short_script("ada"), "base", "train", lambda turn, said=said: said)) is names


# --- English only, and said so --------------------------------------------------------------------


def test_rules_refuse_a_chinese_client_before_anything_is_said() -> None:
    entry = TherapistEntry(name="reflector", family="rules", kind="rules", rules="reflector")
    with pytest.raises(UserError, match=r"'reflector' is made of rules that read English only, and client 'lin-jing'"):
        plan_sessions([chinese_script()], [entry], [0], {"lin-jing": "train"}, 60, Sampling(), None, False)
    english = build_script(SHIPPED["tomasz-wilk"], "full")
    assert plan_sessions([english], [entry], [0], {"tomasz-wilk": "train"}, 60, Sampling(), None, False)


def test_the_reference_judge_refuses_chinese_sessions_and_their_safety_floor() -> None:
    script = chinese_script()
    session = session_of(script, "base", "heldout", lambda turn: "我在听。")
    with pytest.raises(UserError, match=r"reads English only, and 1 clients speak Chinese \(lin-jing\)"):
        reply_checks(session, script)
    check_readable([short_script("ada")])


def test_margins_count_chinese_dev_clients_for_diversity_alone() -> None:
    script, english = chinese_script(), short_script("ada")
    sides = [session_of(script, n, "dev", f"{n}，我在听，你慢慢说。") for n in ("c", "d")]
    plain = [session_of(english, n, "dev", lambda turn: "It hurts.") for n in ("c", "d")]
    alone = calibrate([(sides[0], sides[1])], {script.id: script}, "judge")
    both = calibrate([(sides[0], sides[1]), (plain[0], plain[1])], {s.id: s for s in (script, english)}, "judge")
    assert set(alone.values()) == {MIN_TAU} and both == calibrate(
        [(plain[0], plain[1])], {english.id: english}, "judge"
    )


@pytest.mark.parametrize("of_llm", [False, True])
def test_a_tournament_with_a_chinese_client_needs_llm_judges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], of_llm: bool
) -> None:
    config = write_run(tmp_path, judges("http://127.0.0.1:9/v1") if of_llm else None, 2, 2)
    run, script = tmp_path / "run", chinese_script()
    records.write(run / "scripts.jsonl", [*records.read(run / "scripts.jsonl", Script), script])
    spoken = [session_of(script, n, "train", lambda turn: "我在听。") for n in ("c0", "c1")]
    records.write(run / "sessions.jsonl", [*records.read(run / "sessions.jsonl", Session), *spoken])
    assert cli(["tournament", str(config)]) == 2
    told = capsys.readouterr().err
    assert ("reads English only, and 1 clients speak Chinese (lin-jing)" in told) is not of_llm
    assert not (run / "manifests" / "tournament.json").exists() and not (run / "battles.jsonl").exists()
