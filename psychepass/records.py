"""Validated JSONL: one record a line, appended whole, read strictly, resumed after a kill.

The stage that owns a file opens it with `Appender`, which drops a half-written last line (it was never
finished). Any other reader gets an error there, because the stage that writes the file has not ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from psychepass.config import describe
from psychepass.errors import UserError
from psychepass.schema import Record

R = TypeVar("R", bound=Record)


def dumps(record: Record) -> str:
    """One canonical line: sorted keys, no spaces, so that equal records give equal bytes."""
    return json.dumps(record.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read(path: str | Path, model: type[R]) -> list[R]:
    """All records of a finished file.

    Raises:
        UserError: missing file, half-written last line, a line that is not JSON or not a `model`.
    """
    return list(iterate(path, model))


def iterate(path: str | Path, model: type[R]) -> Iterator[R]:
    """As `read`, one record at a time."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the stage that writes it first")
    with path.open("rb") as f:
        for number, line in enumerate(f, start=1):
            if not line.endswith(b"\n"):
                raise UserError(
                    f"{path}, line {number}: half-written last line {line[:60]!r}; run the stage that writes it again"
                )
            yield _parse(line, model, f"{path}, line {number}")


def peek(path: str | Path, model: type[R]) -> list[R]:
    """What an unfinished file holds, which is left as it is: no file is no record, a torn last line is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parse(line, model, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def drop_torn_line(path: Path) -> int:
    """Cut a half-written last line off, which a kill left; returns its bytes. For the file's owner only."""
    if not path.exists():
        return 0
    with path.open("rb+") as f:
        data = f.read()
        torn = len(data) - (data.rfind(b"\n") + 1)
        if torn:
            f.truncate(len(data) - torn)
    return torn


def _parse(line: bytes, model: type[R], where: str) -> R:
    try:
        data = json.loads(line)
    except ValueError as e:
        raise UserError(f"{where}: not JSON ({e}): {line[:80]!r}") from e
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise UserError(f"{where}: not a valid {model.__name__}: {describe(e, model)}") from e


def write_atomic(path: str | Path, text: str) -> None:
    """Replace a file at once, so that a kill leaves the old one or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


def write(path: str | Path, records: Iterable[Record]) -> None:
    """Write a whole file at once (see write_atomic)."""
    write_atomic(path, "".join(dumps(r) + "\n" for r in records))


def write_json(path: str | Path, value: Any) -> None:
    """Indented, sorted JSON, written at once; NaN is refused."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Raises UserError for a missing file or bad JSON."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the stage that writes it first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path}: not JSON: {e}") from e


class Appender:
    """The owner's handle on a JSONL file: what is there (by key), and whole-line appends.

    >>> with Appender(path, Session) as sessions:      # doctest: +SKIP
    ...     if session_key not in sessions.done:
    ...         sessions.append(make())
    """

    def __init__(self, path: str | Path, model: type[Record]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.dropped_bytes = drop_torn_line(self.path)
        self.done: dict[str, Any] = {}
        if self.path.exists():
            self.done = {r.key: r for r in iterate(self.path, model)}
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, *records: Record) -> None:
        """One write and one fsync for all of `records`; a record whose key is there is refused."""
        self.write(*records)
        self.sync()

    def write(self, *records: Record) -> None:
        """As `append` without the fsync: what was written outlives this process, though not a power cut."""
        for record in records:
            if record.key in self.done:
                raise ValueError(f"{self.path}: a record with key {record.key} is already there")
            self.done[record.key] = record
        data = "".join(dumps(r) + "\n" for r in records).encode()
        while data:
            data = data[os.write(self._fd, data) :]

    def sync(self) -> None:
        os.fsync(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
