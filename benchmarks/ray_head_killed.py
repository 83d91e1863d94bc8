"""A sweep on a real local Ray with two workers, its head killed with SIGKILL while members train.

    python benchmarks/ray_head_killed.py sota_smoke FOLDER --whole OTHER_FOLDER --out RESULT.json

OTHER_FOLDER holds (or gets) the same plan on local processes, uninterrupted. The head is killed once,
when two trainings run and both have a checkpoint. Exit code 0 only if the sweep ends complete, with
the same result digest, members were lost, and nothing was done twice: one successful end per job and
the same lines in every training log. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from universal_simulator.run_record import RunFolder
from universal_simulator.sweep.leaderboard import result_digest
from universal_simulator.sweep.state import JOURNAL, SweepState

WORKERS = 2


def sweep(plan: str, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["sweep", "run", plan, "--folder", str(folder), "--workers", str(WORKERS), *options]
    with open(folder / "driver.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "universal_simulator.cli", *words], stdout=log, stderr=subprocess.STDOUT
        )


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait() != 0:
        raise SystemExit(f"the sweep failed:\n{(folder / 'driver.log').read_text()[-2000:]}")


def processes() -> dict[int, tuple[int, str]]:
    """pid -> (parent, command line)"""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(entry.name)] = (parent, (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def head_of(driver: int) -> int:
    """The `ray start --head` two generations below the driver: driver, guard, head."""
    table = processes()
    guards = [pid for pid, (parent, _) in table.items() if parent == driver]
    heads = [p for p, (parent, words) in table.items() if parent in guards and "start --head" in words]
    if len(heads) != 1:
        raise SystemExit(f"expected one head below the driver, found {len(heads)}")
    return heads[0]


def kill_head(driver: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    """SIGKILL to the head once two trainings run and have checkpoints; what ran then."""
    while driver.poll() is None:
        if (folder / JOURNAL).exists():
            state = SweepState(folder)
            running = [run.run_id for run in state.runs if state.running(f"train:{run.run_id}")]
            begun = [r for r in running if any(RunFolder(folder, r).path.glob("checkpoints/*_state.pt"))]
            if len(begun) == WORKERS:
                os.kill(head_of(driver.pid), signal.SIGKILL)
                done = sum(state.done(f"train:{run.run_id}") for run in state.runs)
                return {"running": begun, "trainings_done": done, "trainings": len(state.runs)}
        time.sleep(0.1)
    raise SystemExit("the sweep ended before the head could be killed")


def steps_logged(state: SweepState) -> dict[str, list[int]]:
    """Step of every line of every training log (a validation has a line of its own).

    A run that goes on cuts its log back to its checkpoint first, so a sweep with lost members must
    leave the same lines as one without.
    """
    found = {}
    for run in state.runs:
        for path in sorted(RunFolder(state.folder, run.run_id).path.glob("metrics_*.jsonl")):
            lines = path.read_text(encoding="utf-8").splitlines()
            found[f"{run.run_id}/{path.name}"] = [json.loads(line)["step"] for line in lines]
    return found


def told(state: SweepState, seconds: float) -> dict[str, Any]:
    ends = [event.data for event in state.journal.of("job_ended")]
    good = [end["job"] for end in ends if end["exit_code"] == 0]
    return {
        "wall_s": round(seconds, 1),
        "jobs_done": len(good),
        "done_twice": len(good) - len(set(good)),
        "lost": [end["job"] for end in ends if end.get("lost")],
        "job_seconds": round(sum(end["seconds"] for end in ends), 1),
        "job_seconds_lost": round(sum(end["seconds"] for end in ends if end.get("lost")), 1),
        "log_lines": sum(map(len, steps_logged(state).values())),
        "champion": (state.decision("champion") or {}).get("sentence"),
        "digest": result_digest(state),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--whole", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    began = time.monotonic()
    finish(sweep(given.plan, given.whole), given.whole)
    whole = told(SweepState(given.whole), time.monotonic() - began)
    began = time.monotonic()
    driver = sweep(given.plan, given.folder, "--executor", "ray", "--ray-address", "local")
    kill = kill_head(driver, given.folder)
    kill["after_s"] = round(time.monotonic() - began, 1)
    finish(driver, given.folder)
    ray = told(SweepState(given.folder), time.monotonic() - began)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "command": f"python benchmarks/ray_head_killed.py {given.plan} FOLDER --whole OTHER_FOLDER",
        "commit": commit.stdout.strip(),
        "versions": {name: version(name) for name in ("ray", "torch")}
        | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {WORKERS} workers of one thread",
        "kill": kill,
        "local": whole,
        "ray": ray,
        "same_digest": whole["digest"] == ray["digest"],
        "same_steps_logged": steps_logged(SweepState(given.whole)) == steps_logged(SweepState(given.folder)),
    }
    text = json.dumps(result, indent=1) + "\n"
    if given.out is not None:
        given.out.write_text(text)
    print(text)
    same = result["same_digest"] and result["same_steps_logged"]
    raise SystemExit(0 if same and ray["lost"] and not ray["done_twice"] else 1)


if __name__ == "__main__":
    main()
