"""Stage `import-pairs`: preference data from elsewhere becomes the pairs and sessions of a run of its own.

Reads JSON lines or parquet with the conversational rows of `datasets` and TRL: `chosen` and `rejected` are
messages that end with the assistant's reply, after the messages of `prompt` where there is one (else the prompt
is implicit). Optional columns: `dimension`, `client` and `weight` in (0, 1]; further ones are ignored. The two
sides may have different histories. System messages are left out: the reward model reads what client and
therapist said (training/render.py). After this stage `rm` and `rm-eval` run as on a tournament's pairs.

Rows of feedback_esconv, known by their columns, are read as they are (training/feedback_esconv.py).

The unit of the split and of every interval is `client`. Without that column, rows whose conversations begin with
the same client line are one unit, so that no conversation lies on both sides of the split; both sides of a row must
then begin with the same line.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import StageRun, say, stage_run
from psychepass.schema import Dimension, Identity, Message, Phase, PreferencePair, Session, Side, Turn, content_hash
from psychepass.words import word_count
from training import feedback_esconv
from training.pairs import REWARDED

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPEAKER = Identity(name="imported", kind="imported", family="imported")  # who wrote a side is not known
SHAPE = 'permitted: a list of {"role", "content"} messages'


class ImportConfig(StageConfig):
    """`file`: the rows. `dimension`: what a row without a dimension of its own is about. `test_share`: the
    share of clients, chosen by a hash of their name, whose pairs are kept for rm-eval: 1 trains nothing.
    """

    file: str
    dimension: str
    test_share: float = Field(ge=0, le=1)


class PairRow(NamedTuple):
    """A row that was checked. Each side alternates user and assistant and ends with the assistant."""

    number: int
    client: str
    dimension: Dimension
    weight: float
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


def main(config_path: str, overrides: list[str]) -> None:
    config = load(ImportConfig, config_path, overrides)
    file = Path(config.file)
    with stage_run("import-pairs", config, [file]) as run:
        if run.done:
            return
        try:
            refuse_other_records(run)
            read = read_rows(file)
            if feedback_esconv.recognised(read[0]):
                read = feedback_esconv.conversational(read, file.name)
            rows = checked_rows(read, file.name, config.dimension)
        except UserError:
            run.abandon()
            raise
        tests = clients_to_test((r.client for r in rows), config.test_share)
        pairs, sessions = records_of(rows, file.name, tests)
        records.write(run.dir / "sessions.jsonl", sessions)
        records.write(run.dir / "pairs.jsonl", pairs)
        dimensions = Counter(p.dimension.value for p in pairs)
        clients = {s: len({p.profile_id for p in pairs if p.split == s}) for s in ("train", "test")}
        run.note(pairs=len(pairs), clients=clients, dimensions=dimensions)
        say(
            f"import-pairs: {len(pairs)} pairs on {', '.join(dimensions)}; {clients['train']} clients to train on, "
            f"{clients['test']} to test on"
        )


def refuse_other_records(run: StageRun) -> None:
    """Raises UserError where the run has sessions of another stage, which this one would write over."""
    for name in ("sessions.jsonl", "pairs.jsonl"):
        if run.manifest["starts"] == 1 and (run.dir / name).exists():
            raise UserError(f"{run.dir / name} is there already; imported pairs need a run directory of their own")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The file's rows as `datasets` reads them.

    Raises:
        UserError: another kind of file, one that `datasets` cannot read, or no row.
    """
    if file.suffix not in FORMATS:
        raise UserError(f"{file}: a file of kind {file.suffix!r}; permitted: {', '.join(FORMATS)}")
    import datasets
    from datasets.exceptions import DatasetGenerationError

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:  # no copy of other people's rows stays behind
        try:
            table = datasets.load_dataset(
                FORMATS[file.suffix], data_files=str(file), split="train", cache_dir=cache, keep_in_memory=True
            )
        except StopIteration:  # its JSON reader's word for an empty file
            raise UserError(f"{file}: no row") from None
        except (DatasetGenerationError, ValueError) as e:
            cause = " ".join(str(e.__cause__ or e).split())[:300]
            raise UserError(f"{file}: `datasets` cannot read it as {FORMATS[file.suffix]}: {cause}") from e
        try:
            rows = [dict(row) for row in table]
        except UnicodeDecodeError as e:  # read as it is, and decoded here
            raise UserError(f"{file}: not UTF-8 ({e}): {e.object[:80]!r}") from e
    if not rows:
        raise UserError(f"{file}: no row")
    return rows


def checked_rows(rows: Sequence[Mapping[str, Any]], name: str, dimension: str) -> list[PairRow]:
    """Every row as a pair; `dimension` stands where a row names none.

    Raises:
        UserError: the first bad row: its number (from 1), the field, the value and what is permitted.
    """
    default = _dimension(dimension, "import-pairs: dimension")
    has_client = any(row.get("client") is not None for row in rows)
    found = []
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        prompt = [] if row.get("prompt") is None else _messages(row["prompt"], f"{where}: prompt")
        chosen, rejected = (_side(prompt, row.get(side), f"{where}: {side}") for side in ("chosen", "rejected"))
        if _read(chosen) == _read(rejected):
            raise UserError(f"{where}: rejected is the same as chosen; permitted: two different replies")
        if not has_client and chosen[0].content != rejected[0].content:  # whose pair is it?
            raise UserError(
                f"{where}: rejected begins with another client line than chosen; permitted without a column client: "
                "the same, which tells clients apart"
            )
        own = row.get("dimension")
        found.append(
            PairRow(
                number=number,
                client=_client(row.get("client"), f"{where}: client")
                if has_client
                else content_hash(chosen[0].content),
                dimension=default if own is None else _dimension(own, f"{where}: dimension"),
                weight=_weight(row.get("weight"), f"{where}: weight"),
                chosen=chosen,
                rejected=rejected,
            )
        )
    return found


def _side(prompt: list[Message], said: Any, where: str) -> tuple[Message, ...]:
    messages = [*prompt, *_messages(said, where)]
    if messages and messages[0].role == "system":
        messages = messages[1:]
    roles = [m.role for m in messages]
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise UserError(
            f"{where}: the conversation's roles are {roles}; permitted, after a system message: user and assistant "
            "in turn, from a user to an assistant"
        )
    if not messages[-1].content.strip():
        raise UserError(f"{where}: the last reply is empty; permitted: some text")
    return tuple(messages)


def _read(side: tuple[Message, ...]) -> list[str]:
    """What the reward model reads of a side: space around a text is left out (training/render.py)."""
    return [m.content.strip() for m in side]


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise UserError(f"{where} is {_short(value)}; {SHAPE}")
    found = []
    for place, message in enumerate(value, start=1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ("system", "user", "assistant"):
            raise UserError(f"{where}, message {place}: role is {_short(role)}; permitted: system, user, assistant")
        if not isinstance(content, str):
            raise UserError(f"{where}, message {place}: content is {_short(content)}; permitted: a text")
        found.append(Message(role=role, content=content))
    return found


def _dimension(value: Any, where: str) -> Dimension:
    names = {d.value: d for d in REWARDED}
    if not isinstance(value, str) or value not in names:
        raise UserError(f"{where} is {_short(value)}; permitted: {', '.join(names)}")
    return names[value]


def _client(value: Any, where: str) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise UserError(f"{where} is {_short(value)}; permitted: a name or number, in every row or in none")
    return str(value)


def _weight(value: Any, where: str) -> float:
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise UserError(f"{where} is {_short(value)}; permitted: a number above 0 and at most 1")
    return float(value)


def _short(value: Any) -> str:
    return "missing" if value is None else repr(value)[:80]


def clients_to_test(clients: Iterable[str], share: float) -> set[str]:
    """round(share x clients) of them, by a hash of their name; at least one where the share is above 0."""
    ordered = sorted(set(clients), key=content_hash)
    return set(ordered[: max(math.ceil(share), round(share * len(ordered)))])


def records_of(rows: Iterable[PairRow], name: str, tests: Container[str]) -> tuple[list[PreferencePair], list[Session]]:
    """A pair a row, and its two sides as sessions, each conversation once a client; `tests` are the test clients."""
    sessions: dict[str, Session] = {}
    pairs = []
    for row in rows:
        split = "test" if row.client in tests else "train"
        sides = []
        for messages in (row.chosen, row.rejected):
            session = _session(messages, row.client, split)
            sessions[session.id] = session
            sides.append(Side(session=session.id, turns=(len(session.turns),)))
        pairs.append(
            PreferencePair(
                profile_id=row.client,
                split=split,
                dimension=row.dimension,
                chosen=sides[0],
                rejected=sides[1],
                battles=(f"{name}:{row.number}",),
                weight=row.weight,
            )
        )
    return pairs, list(sessions.values())


def _session(messages: tuple[Message, ...], client: str, split: str) -> Session:
    """The conversation as turns. Phases and probes are unknown; the asked length is taken from the reply."""
    turns = tuple(
        Turn(turn=number, phase=Phase.ALLIANCE, dimension=None, client=said.content, therapist=reply.content)
        for number, (said, reply) in enumerate(zip(messages[::2], messages[1::2], strict=True), start=1)
    )
    return Session(
        profile_id=client,
        script_id=f"imported-{content_hash([m.content for m in messages])}",
        split=split,  # type: ignore[arg-type]
        therapist=SPEAKER,
        client=SPEAKER,
        target_words=max(1, word_count(messages[-1].content)),
        seed=0,
        turns=turns,
    )
