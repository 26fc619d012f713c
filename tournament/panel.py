"""One LLM judge, or several that vote, as the judge of a tournament.

Of several, the verdict on a dimension, and overall, is the one that more than half of them gave; where none has a
majority, it is a tie. All votes are kept on the battle. If the judgement of one of them fails, the panel's has failed:
a verdict of fewer judges would be another judge's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from psychepass.errors import UserError
from psychepass.schema import (
    Battle,
    Dimension,
    Failure,
    Identity,
    JudgeIdentity,
    Script,
    Session,
    Usage,
    Verdict,
    Vote,
    Winner,
    content_hash,
)
from rollout_env.minors import expects_adult
from tournament.judge import Outcome, subject
from tournament.llm_judge import JudgeEntry, JudgeReply, LLMJudge, is_final

Said = Mapping[str, Sequence[JudgeReply]]  # judge's name -> its replies to one presentation, in order


class Panel:
    """The judges of a config. `identity` is that of the only judge, or stands for all of them and the rule. `scripts`:
    those of the sessions that it will be shown; clients under 18 among them change what it is asked."""

    def __init__(
        self,
        entries: Sequence[JudgeEntry],
        tau_diversity: float,
        scripts: Iterable[Script] = (),
        stage: str = "tournament",
    ):
        self.stage = stage  # of its failures
        minors = {s.id for s in scripts if expects_adult(s)}
        self.judges = tuple(LLMJudge(e, tau_diversity, minors) for e in sorted(entries, key=lambda e: e.name))
        identities = [j.identity for j in self.judges]
        self.identity = identities[0] if len(identities) == 1 else _of_all(identities)

    def own(self, replies: Iterable[JudgeReply], path: Path) -> Iterator[JudgeReply]:
        """The replies of `path` as they are.

        Raises:
            UserError: one is of a judge that is not of this panel, or of one that has changed since.
        """
        identities = {j.entry.name: j.identity for j in self.judges}
        for reply in replies:
            if identities.get(reply.judge.name) != reply.judge:
                now = identities.get(reply.judge.name, self.identity)
                raise UserError(
                    f"{path}: reply {reply.id} is of judge {reply.judge.name} ({reply.judge.model}, prompt "
                    f"{reply.judge.prompt_hash}, rubric {reply.judge.rubric_version}), this run's is {now.name} "
                    f"({now.model}, prompt {now.prompt_hash}, rubric {now.rubric_version}); use another run directory"
                )
            yield reply

    def outcome(self, a: Session, b: Session, round: int, said: Said) -> Outcome | None:
        """The outcome of a presentation; None while a judge is still to be asked."""
        if not all(is_final(said.get(j.entry.name, ())) for j in self.judges):
            return None
        replies = [r for j in self.judges for r in said[j.entry.name]]
        usage = sum((r.usage for r in replies), Usage())
        failed = [j for j in self.judges if said[j.entry.name][-1].fault]
        if failed:
            told = (f"{j.entry.name}: {', then '.join(r.fault for r in said[j.entry.name])}" for j in failed)
            detail = (
                f"round {round}, client {a.profile_id}, {a.therapist.name} and {b.therapist.name}; {'; '.join(told)}"
            )
            reason = "no readable judgement"
            return Failure(stage=self.stage, subject=subject(a.id, b.id), reason=reason, detail=detail, usage=usage)
        votes = [_vote(j, said[j.entry.name][-1], a, b) for j in self.judges]
        return Battle(
            profile_id=a.profile_id,
            split=a.split,
            round=round,
            session_a=a.id,
            session_b=b.id,
            contestant_a=a.therapist.name,
            contestant_b=b.therapist.name,
            judge=self.identity,
            **decided(votes),
            usage=usage,
        )


def _of_all(identities: Sequence[JudgeIdentity]) -> JudgeIdentity:
    return JudgeIdentity(
        name=f"panel of {', '.join(i.name for i in identities)}",
        model="; ".join(i.model for i in identities),
        rubric_version=identities[0].rubric_version,  # the criteria are the same for all
        prompt_hash=content_hash(["majority, else tie", *(i.model_dump(mode="json") for i in identities)]),
    )


def _vote(judge: LLMJudge, reply: JudgeReply, a: Session, b: Session) -> Vote:
    verdicts, overall = judge.read(reply, a, b)
    return Vote(judge=judge.identity, verdicts=verdicts, overall=overall)


def decided(votes: Sequence[Vote]) -> dict[str, Any]:
    """`verdicts`, `overall` and `votes` of a Battle; a single judge's verdicts are its own, and no votes are kept."""
    if len(votes) == 1:
        return {"verdicts": votes[0].verdicts, "overall": votes[0].overall}
    names = [v.judge.name for v in votes]
    verdicts = {d: _majority(names, [v.verdicts[d] for v in votes]) for d in Dimension}
    return {"verdicts": verdicts, "overall": _majority(names, [v.overall for v in votes]), "votes": tuple(votes)}


def _majority(names: Sequence[str], given: Sequence[Verdict]) -> Verdict:
    counts: Counter[Winner] = Counter(v.winner for v in given)
    winner, n = counts.most_common(1)[0]
    chosen = winner if 2 * n > len(given) else "tie"
    told = ", ".join(f"{name} {v.winner}" for name, v in zip(names, given, strict=True))
    return Verdict(winner=chosen, reason=f"votes: {told}")


def also_playing(judges: Sequence[LLMJudge], contestants: Sequence[Identity]) -> list[dict[str, str]]:
    """The judges that are contestants too: of one family, or of one model whatever its address and settings."""
    found = []
    for judge in judges:
        model, family = judge.entry.endpoint.model, judge.entry.family
        for c in contestants:
            same = [f"family {family}"] if c.family == family else []
            same += [f"model {model}"] if c.kind == "endpoint" and c.weights.startswith(f"{model} at ") else []
            if same:
                found.append({"judge": judge.entry.name, "contestant": c.name, "same": " and ".join(same)})
    return found


def also_plays(found: Mapping[str, str]) -> str:
    """One of `also_playing`, for the person who reads."""
    return f"judge {found['judge']} also plays: it and contestant {found['contestant']} share {found['same']}"
