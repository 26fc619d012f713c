"""How often the held-out clients were looked at: openings.json, beside all run directories of a folder.

Each evaluation of a policy is one entry, however often it was killed and gone on with: its id is written into the run
before it is counted, and an id that is counted is not counted again.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from pathlib import Path

from psychepass import records
from psychepass.errors import UserError

COUNTER = "openings.json"
MARK = "opening.json"


def count(run_dir: Path, policy: str) -> int:
    """Count this run's evaluation of `policy` (hash of weights, or endpoint) once; returns which opening it is, from 1.

    Raises:
        UserError: openings.json is no list of openings.
    """
    mark = run_dir / "heldout" / MARK
    if not mark.is_file() or records.read_json(mark)["policy"] != policy:
        entry = {
            "evaluation": uuid.uuid4().hex,
            "run": run_dir.resolve().name,
            "policy": policy,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        records.write_json(mark, entry)
    entry = records.read_json(mark)
    counter = run_dir.resolve().parent / COUNTER
    lock = os.open(counter.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of one folder may open at the same time
        openings = records.read_json(counter) if counter.is_file() else []
        if not isinstance(openings, list) or not all(isinstance(o, dict) and "evaluation" in o for o in openings):
            raise UserError(f"{counter}: expected a list of openings, each with 'evaluation'; got {str(openings)[:80]}")
        known = [o["evaluation"] for o in openings]
        if entry["evaluation"] not in known:
            records.write_json(counter, [*openings, entry])
            known.append(entry["evaluation"])
    finally:
        os.close(lock)
    return known.index(entry["evaluation"]) + 1
