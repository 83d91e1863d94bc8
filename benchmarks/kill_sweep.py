"""Kill a sweep's driver with SIGKILL at random moments, type it again each time, compare the results.

    python benchmarks/kill_sweep.py smoke FOLDER --whole OTHER_FOLDER --kills 10 --seconds 40

FOLDER is swept with kills, OTHER_FOLDER holds (or gets) the uninterrupted sweep. Exit code 0 only if
both end in the same result digest. Moments are drawn evenly over `--seconds` of work, seeded.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from universal_simulator.sweep.leaderboard import result_digest
from universal_simulator.sweep.state import JOURNAL, SweepState


def launch(plan: str, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "driver.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "universal_simulator.cli", "sweep", "run", plan, "--folder", str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(plan: str, folder: Path) -> None:
    """The sweep to its end, where it is not there already."""
    if launch(plan, folder).wait() != 0:
        raise SystemExit(f"the sweep in {folder} failed; see {folder / 'driver.log'}")


def kill_repeatedly(
    plan: str, folder: Path, *, kills: int, seconds: float, seed: int
) -> list[dict[str, object]]:
    """`kills` SIGKILLs, each after a drawn span of work; what the journal said at each."""
    draw = random.Random(seed)
    moments = []
    for _ in range(kills):
        process = launch(plan, folder)
        span = draw.uniform(0.3, 2 * seconds / (kills + 1))
        deadline = time.monotonic() + span
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        journal = folder / JOURNAL
        lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
        moments.append({"after_s": round(span, 2), "journal_lines": lines})
    return moments


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--whole", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=40.0, help="about how long the sweep takes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    finish(given.plan, given.whole)
    moments = kill_repeatedly(
        given.plan, given.folder, kills=given.kills, seconds=given.seconds, seed=given.seed
    )
    finish(given.plan, given.folder)
    digests = {str(folder): result_digest(SweepState(folder)) for folder in (given.whole, given.folder)}
    worked = {
        str(folder): round(sum(e.data["seconds"] for e in SweepState(folder).journal.of("job_ended")), 1)
        for folder in (given.whole, given.folder)
    }
    print(
        json.dumps({"kills": moments, "digests": digests, "job_seconds_of_ended_attempts": worked}, indent=1)
    )
    raise SystemExit(0 if len(set(digests.values())) == 1 else 1)


if __name__ == "__main__":
    main()
