"""Stage `tournament`: sessions of train and test clients meet, by default in Swiss rounds; battles become ratings.

Reads sessions.jsonl and scripts.jsonl. Writes judge.json (the reference judge and its shadow, calibrated on dev
clients, and the LLM judges if the config has any; frozen before any battle), battles.jsonl, failures.jsonl if a
judgement failed, and ratings.json; with LLM judges also judge_replies.jsonl, what they said, and
ledger_tournament.jsonl, what it cost.
A battle of the reference judge is on disk before the next is judged; of LLM judges many are asked at once, and each
reply is on disk before anything rests on it (tournament/endpoint_matches.py). Pairing depends on nothing but the
battles of the rounds before: after a kill the stage goes on where it stood, and nothing answered is asked again. With
LLM judges a client's next round follows its own last one, wherever the others are; adaptive pairing waits for all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import Field as Bounded
from pydantic import model_validator

from psychepass import records
from psychepass.config import load
from psychepass.dry_run import table
from psychepass.errors import UserError
from psychepass.ledger import Ledger, spent_usd
from psychepass.run import StageRun, say, stage_run
from psychepass.schema import Dimension, Script, Session
from psychepass.served import served_models, several_served
from tournament import pairing, ratings
from tournament.endpoint_matches import LEDGER, NOT_HAD, REPLIES, EndpointMatches
from tournament.field import Field, check_held, dev_pairs, enter, failed_sessions, script_of
from tournament.journal import Journal
from tournament.judge import Outcome
from tournament.leaderboard import leaderboard
from tournament.lexicon import LexiconName
from tournament.llm_judge import JudgeReply, shown_by
from tournament.measuring import JudgedConfig
from tournament.pairing import PairingName
from tournament.panel import Panel, also_playing, also_plays
from tournament.planned_judgements import planned_judgements
from tournament.play import in_turn, play
from tournament.reference_context import check_readable, is_readable
from tournament.reference_judge import ReferenceJudge, calibrate

FREE = frozenset({"run", "wandb", "budget_usd"})  # these change no battle


class TournamentConfig(JudgedConfig):
    """`base` and `base_repeat` are contestants of the same model and prompt that differ in seed alone: what the
    reference judge finds between them on dev clients is noise, and sets its tie thresholds. `rounds` a client: null is
    the pairing's own number. `ties` in the ratings: half a win for each, or Davidson's model.
    """

    base: str
    base_repeat: str
    pairing: PairingName = "swiss"
    rounds: int | None = Bounded(default=None, ge=1)
    ties: ratings.Ties = "half"

    @model_validator(mode="after")
    def _check_base(self) -> TournamentConfig:
        if self.base == self.base_repeat:
            raise ValueError(
                f"base and base_repeat are both {self.base!r}, and no session differs from itself; permitted: two "
                "contestants that differ in seed alone"
            )
        return self


class Entered:
    """What the stage reads, checked: the field, the dev clients' pairs, the rounds of a client."""

    def __init__(self, config: TournamentConfig):
        folder = Path(config.run)
        self.inputs = [folder / "sessions.jsonl", folder / "scripts.jsonl"]
        sessions = records.read(self.inputs[0], Session)
        check_held(folder)
        self.scripts = {s.id: s for s in records.read(self.inputs[1], Script)}
        if not config.judges:
            check_readable(self.scripts.values())
        lost = failed_sessions(folder)
        self.field = enter(sessions, self.scripts, lost)
        self.pairs = dev_pairs(sessions, config.base, config.base_repeat, lost)
        self.rounds = rounds_played(self.field, config)


def main(config_path: str, overrides: list[str]) -> None:
    config = load(TournamentConfig, config_path, overrides)
    # read and checked before the manifest is written: a field with a session missing leaves no trace of a run
    entered = Entered(config)
    with stage_run("tournament", config, entered.inputs, FREE) as run:
        if run.done:
            return
        reference = reference_judges(entered)
        panel = None
        if config.judges:
            panel = Panel(config.judges, reference["judge"].tau[Dimension.DIVERSITY], entered.field.scripts.values())
        say_what_is_no_twin(entered)
        say_what_is_not_read(entered)
        freeze(run.dir / "judge.json", reference, panel)
        with Journal(run.dir, panel.identity if panel else reference["judge"].identity) as journal:
            if panel:
                judge_over_endpoints(config, entered.field, panel, journal, run)
            else:
                play(entered.field, in_turn(reference["judge"], journal), config.seed, config.pairing, config.rounds)
            outcomes = journal.outcomes()
        made = rated(config, entered, outcomes, reference["judge"], panel)
        records.write_json(run.dir / "ratings.json", made)
        for found in made.get("judge_also_plays", ()):
            say(f"tournament: {also_plays(found)}")
        if told := several_served(made.get("served_models", {})):
            say(f"tournament: {told}: verdicts of more than one judge are mixed")
        run.note(**{k: made[k] for k in ("n_clients", "n_battles", "failures", "tie_rate")})


def judge_over_endpoints(
    config: TournamentConfig, entered: Field, panel: Panel, journal: Journal, run: StageRun
) -> None:
    """Play with LLM judges.

    Raises:
        UserError: a judge's key, address or model is wrong, and no call was made; or matches are left for the next run
            (Unfinished, if an endpoint did not answer).
    """
    with Ledger(run.dir / LEDGER, config.budget_usd) as ledger:
        before_usd = ledger.spent_usd
        try:
            matches = EndpointMatches(panel, journal, ledger, run.dir)
            with matches:
                left = play(entered, matches.hold, config.seed, config.pairing, config.rounds)
        except UserError:
            forget_first_start(run)
            raise
        cost = f"{ledger.spent_usd - before_usd:.4f} USD in this run, {ledger.spent_usd:.4f} in all ({ledger.path})"
    failed = len(journal.failures())
    say(f"judges: {cost}" + (f"; {failed} judgements failed: {run.dir / 'failures.jsonl'}" if failed else ""))
    if left:
        most = "up to " if config.pairing == "adaptive" else ""
        of_all = f"{most}{left} of {entered.matches(config.pairing, config.rounds)} matches"
        raise matches.left_open.error(f"{of_all} are left to judge, because {NOT_HAD}", "what was judged")


def forget_first_start(run: StageRun) -> None:
    """Before anything was asked or judged, a mended config may follow."""
    made = [run.dir / name for name in ("battles.jsonl", REPLIES, LEDGER)]
    if run.manifest["starts"] == 1 and not any(p.exists() and p.stat().st_size for p in made):
        for path in (*made, run.dir / "judge.json"):
            path.unlink(missing_ok=True)
        run.abandon()


def rated(
    config: TournamentConfig, entered: Entered, outcomes: list[Outcome], reference: ReferenceJudge, panel: Panel | None
) -> dict[str, Any]:
    """All of ratings.json; with LLM judges it names each of them, and those that play too."""
    identity = panel.identity if panel else reference.identity
    made = leaderboard(entered.field, outcomes, identity, config.seed, config.ties)
    made |= {"pairing": config.pairing, "rounds": entered.rounds}
    if panel:
        made["judges"] = [j.identity.model_dump(mode="json") for j in panel.judges]
        made["shown"] = shown_by(panel.judges)
        made["served_models"] = served_models(Path(config.run) / LEDGER)
        made["judge_also_plays"] = also_playing(panel.judges, entered.field.identities())
    return made


def dry_run(config_path: str, overrides: list[str]) -> None:
    """Print what is still to be asked of each judge's model; nothing is asked or written."""
    config = load(TournamentConfig, config_path, overrides)
    if not config.judges:
        raise UserError("--dry-run: the reference judge calls no model; call the stage without, or set judges")
    entered, folder = Entered(config), Path(config.run)
    tau = reference_judges(entered)["judge"].tau[Dimension.DIVERSITY]
    panel = Panel(config.judges, tau, entered.field.scripts.values())
    said = panel.own(records.peek(folder / REPLIES, JudgeReply), folder / REPLIES)
    planned = planned_judgements(panel, entered.field, config.pairing, config.rounds, said)
    print(table(planned, config.budget_usd, spent_usd(folder / LEDGER)))


def reference_judges(entered: Entered) -> dict[str, ReferenceJudge]:
    """The reference judge and its shadow, calibrated on the dev clients' pairs."""
    for session in (s for pair in entered.pairs for s in pair):
        script_of(session, entered.scripts)
    names = get_args(LexiconName)
    return {name: ReferenceJudge(name, calibrate(entered.pairs, entered.scripts, name)) for name in names}


def say_what_is_no_twin(entered: Entered) -> None:
    """What stands between base and base_repeat beside their seed is taken for noise, and widens the tie margins."""
    base, repeat = (session.therapist for session in entered.pairs[0])
    differ = [k for k in ("kind", "weights", "prompt_hash", "sampling") if getattr(base, k) != getattr(repeat, k)]
    if differ:
        say(
            f"tournament: base {base.name!r} and base_repeat {repeat.name!r} differ in {', '.join(differ)}; expected "
            "in seed alone, since the judge's tie margins take for noise what is between them"
        )


def say_what_is_not_read(entered: Entered) -> None:
    unread = sum(not is_readable(entered.scripts[a.script_id]) for a, _ in entered.pairs)
    if unread:
        say(
            f"tournament: {unread} of {len(entered.pairs)} dev clients speak Chinese, which the reference judge does "
            f"not read; of its margins they count for Diversity's alone"
        )


def freeze(path: Path, reference: dict[str, ReferenceJudge], panel: Panel | None) -> None:
    """Write the judges of this run to `path`, before any battle.

    LLM judges stand under `panel`, beside the reference judge and its shadow, whom stages heldout and best-of-n keep.

    Raises:
        UserError: `path` holds a judge of another version (a judge never changes within a run).
    """
    found: dict[str, Any] = {name: _described(judge) for name, judge in reference.items()}
    if panel:
        found["panel"] = panel.identity.model_dump(mode="json")
        found["panel"]["judges"] = [
            {**j.identity.model_dump(mode="json"), "family": j.entry.family} for j in panel.judges
        ]
    if not path.is_file():
        records.write_json(path, found)
        return
    frozen = records.read_json(path)
    if frozen != found:
        was, now = (_named(judges.get("panel") or judges["judge"]) for judges in (frozen, found))
        raise UserError(f"{path}: this run's judge is {was}, the code now makes {now}; use another run directory")


def _named(judge: dict[str, Any]) -> str:
    return f"{judge['name']} {judge['rubric_version']} {judge['prompt_hash']}"


def _described(judge: ReferenceJudge) -> dict[str, Any]:
    return judge.identity.model_dump(mode="json") | {"tau": {d.value: judge.tau[d] for d in Dimension}}


def rounds_played(entered: Field, config: TournamentConfig) -> int:
    """Rounds of a client with all contestants.

    Raises:
        UserError: more rounds are asked for than there are without a rematch.
    """
    n = len(entered.contestants)
    if config.rounds and config.rounds > pairing.most_rounds(n):
        raise UserError(
            f"rounds: {config.rounds} rounds of {n} contestants need rematches, and two sessions are compared once; "
            f"permitted: 1 to {pairing.most_rounds(n)}, or null"
        )
    return pairing.rounds_of(config.pairing, n, config.rounds)
