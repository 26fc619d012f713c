"""A model behind an endpoint as a judge (PsychePass, sections 3.2.1 and 3.2.2, appendix D.2).

It is shown both sessions in stage slices (tournament/slicing.py) and decides eleven dimensions and the overall verdict
in one call. Diversity is computed, with the tie margin of the reference judge. A reply that holds no verdict
(tournament/judge_reply.py) is shown to the judge once more, with the error; if the second does not either, the
judgement has failed. Of a client under 18 it is told so, and what Crisis then expects (rollout_env/minors.py).
Departures from the paper: prompt and criteria are in our own words (tournament/prompts/), ties are called "tie" and
not 0, keys are the names of the dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from pydantic import Field

from psychepass.config import Config
from psychepass.endpoint import Endpoint
from psychepass.llm import ChatClient, ContextOverflow, Unreadable
from psychepass.schema import (
    Dimension,
    JudgeIdentity,
    Message,
    Record,
    Sampling,
    Session,
    Usage,
    Verdict,
    content_hash,
)
from rollout_env.rubrics.diversity import diversity
from tournament.judge_reply import NoVerdict, output_format, read_reply
from tournament.reference_judge import verdict
from tournament.slicing import SLICES, WHOLE, present

PROMPTS = Path(__file__).parent / "prompts"
SEED = re.compile(r", seed -?\d+\)$")  # the end of a JudgeIdentity's model
SLICES_VERSION = 1  # raise it with any change of what slicing.present shows
TRIES = 2
OVERFLOW = "context overflow"
OF_MINORS = "criteria_minor.txt"


class JudgeEntry(Config):
    """A judge. `family` as a contestant's: a judge that shares it with a contestant is named in every report.

    `sampling.max_tokens` bounds the reply, thoughts included; `seed` sets judges apart that differ in nothing else, and
    two runs of one judge, whose repetition stability stage analysis then measures.
    `sliced: false` shows it whole sessions one after the other, to measure the position bias that slices lessen.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    family: str
    endpoint: Endpoint
    sampling: Sampling = Sampling(temperature=0.0, max_tokens=4096)
    seed: int = 0
    sliced: bool = True


class JudgeReply(Record):
    """A line of judge_replies.jsonl: what a judge said to one presentation of two sessions, word by word.

    `attempt` 0, and 1 after a `fault`: why the text holds no verdict, or why there is none. Verdicts are read from the
    text whenever they are needed, so that a reply is asked for and paid once.
    """

    KEY_FIELDS = ("judge", "session_a", "session_b", "attempt")

    judge: JudgeIdentity
    session_a: str
    session_b: str
    attempt: int = Field(ge=0, lt=TRIES)
    text: str
    fault: str = ""
    usage: Usage = Usage()


class LLMJudge:
    """One judge of the config. `tau_diversity`: the margin within which Diversity is a tie. `minors`: ids of the
    scripts of clients under 18; the identity says whether there are any."""

    def __init__(self, entry: JudgeEntry, tau_diversity: float, minors: Collection[str] = ()):
        self.entry, self.tau_diversity, self.minors = entry, tau_diversity, frozenset(minors)
        drawn = entry.sampling
        self.identity = JudgeIdentity(
            name=entry.name,
            model=f"{entry.endpoint.identity} (temperature {drawn.temperature:g}, top_p {drawn.top_p:g}, "
            f"at most {drawn.max_tokens} tokens, seed {entry.seed})",
            rubric_version=content_hash([_text("criteria.txt"), tau_diversity]),
            prompt_hash=content_hash(
                [_text(name) for name in ("judge.txt", "judge_retry.txt", "criteria.txt", _order(entry.sliced))]
                + [output_format(), SLICES_VERSION, *([_text(OF_MINORS)] if minors else [])]
            ),
        )

    def messages(self, a: Session, b: Session, said: Sequence[JudgeReply] = ()) -> tuple[Message, ...]:
        """What the judge is sent; `said` holds its faulty reply, if it is asked again."""
        prompt = judge_prompt(a, b, self.entry.sliced, a.script_id in self.minors)
        if not said:
            return (Message(role="user", content=prompt),)
        note = _text("judge_retry.txt").replace("{fault}", said[-1].fault)
        if not said[-1].text:
            return (Message(role="user", content=f"{prompt}\n\n{note}"),)
        replied = Message(role="assistant", content=said[-1].text)
        return (Message(role="user", content=prompt), replied, Message(role="user", content=note))

    async def ask(self, client: ChatClient, a: Session, b: Session, said: Sequence[JudgeReply]) -> JudgeReply:
        """Its next reply. Raises what ChatClient.chat raises where nothing came: Transport, Refused, BudgetSpent."""
        attempt = len(said)
        seed = int(content_hash([self.entry.seed, a.id, b.id, attempt]), 16) >> 1
        about = f"judge {self.entry.name} sessions {a.id} {b.id} attempt {attempt + 1}"
        text, fault, usage = "", "", Usage()
        try:
            reply = await client.chat(self.messages(a, b, said), self.entry.sampling, seed=seed, about=about)
            text, usage = reply.text, reply.usage
            fault = _fault_of(text, reply.cut_off, self.entry.sampling.max_tokens)
        except ContextOverflow as e:
            fault, usage = OVERFLOW, e.usage
        except Unreadable as e:
            fault, usage = f"there was no reply in it ({e.reason})", e.usage
        which = {"judge": self.identity, "session_a": a.id, "session_b": b.id, "attempt": attempt}
        return JudgeReply(**which, text=text, fault=fault, usage=usage)

    def read(self, reply: JudgeReply, a: Session, b: Session) -> tuple[dict[Dimension, Verdict], Verdict]:
        """The verdicts of a reply without a fault, Diversity's among them, and the overall one."""
        said = read_reply(reply.text)
        verdicts = {d: said[d.value] if d.value in said else self._diversity(a, b) for d in Dimension}
        return verdicts, said["overall"]

    def _diversity(self, a: Session, b: Session) -> Verdict:
        value_a, value_b = (diversity([t.therapist for t in s.turns]) for s in (a, b))
        told = f"computed: mean Distinct-1 and Distinct-2 {value_a:.6f} (A) and {value_b:.6f} (B)"
        reason = f"{told}; a tie within {self.tau_diversity:.6f}"
        return Verdict(winner=verdict(value_a - value_b, self.tau_diversity), reason=reason)


def shown_by(judges: Iterable[LLMJudge]) -> str:
    """How these judges see two sessions: slicing.SLICES, slicing.WHOLE, or both of them."""
    return " and ".join(sorted({SLICES if j.entry.sliced else WHOLE for j in judges}))


def but_for_seed(judge: JudgeIdentity) -> JudgeIdentity:
    """The judge as another seed would have it: asked again with one seed, a server may repeat itself word by word."""
    return judge.model_copy(update={"model": SEED.sub(")", judge.model)})


def judge_prompt(a: Session, b: Session, sliced: bool = True, minor: bool = False) -> str:
    """The D.2 prompt of one presentation; `minor`: the client is under 18. Raises ValueError as slicing.present."""
    parts = {"order": _text(_order(sliced)), "dialogues": present(a, b, sliced)}
    criteria = "\n".join(_text(name) for name in ("criteria.txt", *([OF_MINORS] if minor else [])))
    parts |= {"criteria": criteria, "output_format": output_format()}
    # in one pass: what looks like a placeholder in a dialogue stays as it was said
    return re.sub(r"\{(order|dialogues|criteria|output_format)\}", lambda found: parts[found[1]], _text("judge.txt"))


def is_final(said: Sequence[JudgeReply]) -> bool:
    """Whether nothing more is to be asked: a verdict is there, or none will come."""
    return bool(said) and (not said[-1].fault or said[-1].fault == OVERFLOW or len(said) == TRIES)


def _fault_of(text: str, cut_off: bool, max_tokens: int) -> str:
    try:
        read_reply(text)
    except NoVerdict as e:
        return f"it was cut off at {max_tokens} tokens; {e}" if cut_off else str(e)
    return ""


def _order(sliced: bool) -> str:
    return "order_sliced.txt" if sliced else "order_whole.txt"


def _text(file_name: str) -> str:
    return (PROMPTS / file_name).read_text(encoding="utf-8").removesuffix("\n")
