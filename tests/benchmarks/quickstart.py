"""Measure the quickstart from outside: wall time, peak memory (PSS) of all its processes, and kills.

    python -m tests.benchmarks.quickstart                            # one whole run, timed
    python -m tests.benchmarks.quickstart --kill simulate:40 grpo:150   # SIGKILL so many seconds into a stage

Processes are found by a marker in their environment, so that Ray's daemons count as well. With --kill,
each kill hits the shell, the running stage and the scorer at once, as a power cut would hit one terminal;
then the same command is started again, and at the end the run's files are checked.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from psychepass import records
from psychepass.schema import Battle, PreferencePair, Session, TurnRecord

MARK = "PSYCHEPASS_MEASURED_RUN"
ROOT = Path(__file__).resolve().parents[2]


def marked_processes(mark: str) -> list[int]:
    """Processes that inherited the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def pss_gb(pids: list[int]) -> float:
    """Proportional set size of the processes together, in GB (10^9 bytes)."""
    total_kb = 0
    for pid in pids:
        try:
            match = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
        except OSError:
            continue
        total_kb += int(match.group(1)) if match else 0
    return total_kb * 1024 / 1e9


def running_stage(run: Path) -> str:
    """The stage whose manifest was started and not ended; empty between stages."""
    for path in (run / "manifests").glob("*.json"):
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if manifest.get("ended") is None:
            return manifest["stage"]
    return ""


def call(run: Path, kill_at: tuple[str, float] | None) -> tuple[int, float, dict[str, float]]:
    """One call of the quickstart: exit code (-9 if killed here), seconds, peak PSS in GB by stage."""
    mark = uuid.uuid4().hex
    begun = time.monotonic()
    process = subprocess.Popen(
        ["bash", "launch/quickstart.sh", str(run)], cwd=ROOT, env={**os.environ, MARK: mark}, start_new_session=True
    )
    peaks: dict[str, float] = {}
    stage_begun: dict[str, float] = {}
    while process.poll() is None:
        stage = running_stage(run)
        peaks[stage] = max(peaks.get(stage, 0.0), pss_gb(marked_processes(mark)))
        first = stage_begun.setdefault(stage, time.monotonic())
        if kill_at and stage == kill_at[0] and time.monotonic() - first >= kill_at[1]:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return -9, time.monotonic() - begun, peaks
        time.sleep(1.0)
    return process.returncode, time.monotonic() - begun, peaks


def check(run: Path) -> None:
    """Every file is whole, nothing stands twice, and GRPO's steps stand once each, in order."""
    for name, model in (("turns", TurnRecord), ("sessions", Session), ("battles", Battle), ("pairs", PreferencePair)):
        found = records.read(run / f"{name}.jsonl", model)
        assert len({r.key for r in found}) == len(found), f"{name}: a record stands twice"
        print(f"{name:<10} {len(found):6d} records, each once")
    steps = [json.loads(line)["step"] for line in (run / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(steps[0], steps[0] + len(steps))), steps
    print(f"grpo steps {steps[0]}..{steps[-1]}, each once; report {(run / 'report.html').stat().st_size} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--kill", nargs="*", default=[], metavar="STAGE:SECONDS")
    args = parser.parse_args()
    kills = [(stage, float(after)) for stage, after in (k.split(":") for k in args.kill)]
    for kill_at in [*kills, None]:
        before = running_stage(args.run)
        code, seconds, peaks = call(args.run, kill_at)
        by_stage = ", ".join(f"{stage or 'between'} {peak:.1f}" for stage, peak in peaks.items())
        print(
            f"call (kill {kill_at}, from {before or 'order'}): exit {code}, {seconds:.0f} s, "
            f"peak PSS {max(peaks.values()):.2f} GB ({by_stage})",
            flush=True,
        )
        if kill_at is None and code != 0:
            return code
    check(args.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
