"""Real drivers, killed with SIGKILL at chosen appends to the journal and gone on with by another process.

    python -m tests.sweep.killed_drivers FOLDER KIND PLAN POINT...

KIND: `mortal` jobs die with their driver, `lasting` ones go on and can be attached to, also when their end was
told already. PLAN: `smoke`, or `everything` (every kind of event that a sound sweep has, see `course`).
POINT: HOW:NUMBER, HOW:all or HOW:every-N, HOW being before, torn (half of the line is written) or after.
One JSON line per point: what the journal says was spent, and what was really worked.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.sweep.fake_executor import FakeExecutor, KnowingExecutor
from universal_simulator.errors import BudgetError
from universal_simulator.sweep import journal as journal_module
from universal_simulator.sweep.driver import resume_sweep, run_sweep
from universal_simulator.sweep.executor import Job, JobEnd, JobState
from universal_simulator.sweep.journal import Event, Journal
from universal_simulator.sweep.leaderboard import result_digest
from universal_simulator.sweep.plan import Plan, load_plan
from universal_simulator.sweep.spending import Ledger
from universal_simulator.sweep.state import JOURNAL, SweepState

#: of every job
TOOK_S = 0.02
HOW = ("before", "torn", "after")
#: launches of trainings that the first budget of `everything` allows: used up while round C searches
LAUNCHES = 7
#: what of its events `smoke` has not
EVERYTHING = (
    "canary_passed",
    "forecast",
    "run_healed",
    "sweep_stopped",
    "plan_amended",
    "round_ended",
    "inference_scored",
    "ttc_scored",
    "test_opened",
)


class Truth:
    """What really happened, in a file that no driver reads."""

    def __init__(self, folder: Path) -> None:
        self.path = folder.with_suffix(".truth")

    def note(self, kind: str, **about: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "at": time.time(), **about}) + "\n")

    def worked(self) -> tuple[float, int]:
        """Seconds at work of all submissions, and how many there were of trainings."""
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        killed = [line["at"] for line in lines if line["kind"] == "killed"]
        ended = {line["submission"]: line["seconds"] for line in lines if line["kind"] == "ended"}
        begun = [line for line in lines if line["kind"] == "begun"]
        seconds = sum(ended.get(b["submission"], killed[0] - b["at"] if killed else 0.0) for b in begun)
        return seconds, sum(b["submission"].startswith("train:") for b in begun)


@dataclass
class _AtWork:
    job: Job
    submission: str
    began: float


def everything() -> tuple[Plan, Plan]:
    """Rounds A, C and D, canary, calibrations, both scores and a budget that is used up; with a larger one."""
    values = load_plan("smoke_iterate").model_dump(mode="json")
    values |= {"name": "everything", "canary": True, "calibrate": True}
    values["ttc"] = {"settings": ["ttc.beam=2"], "groups": 12, "reward_groups": 16}
    first, amended = ({**values, "budget": {"sweep": {"attempts": n}}} for n in (LAUNCHES, 999))
    return Plan.model_validate(first), Plan.model_validate(amended)


def course(plan: str, folder: Path, executor: Callable[[], FakeExecutor]) -> SweepState:
    """A sitting, as whoever types the command begins it; of `everything` its member diverges and is healed, and
    where the budget is used up a second sitting goes on with a larger one.
    """
    if plan == "smoke":
        return run_sweep("smoke", folder, executor=executor())
    first, amended = everything()
    if Journal(folder / JOURNAL).of("plan_amended"):
        return resume_sweep(folder, executor=executor())
    try:
        return run_sweep(first, folder, executor=executor())
    except BudgetError:
        return resume_sweep(folder, executor=executor(), plan=amended)


class Diverging(KnowingExecutor):
    """The written member diverges at its own rate; healed, or as a trial at another rate, it does not."""

    failure_kind = "DivergenceError"

    def exit_code(self, job: Job) -> int:
        words = list(job.arguments)
        rate = any(word.startswith("training.operator.learning_rate=") for word in words)
        return int(job.job_id.startswith("train:") and words[1] == "sweep_round_a_lr3e4_w5" and not rate)

    def submit(self, job: Job) -> None:
        self.exit_codes[job.job_id] = [self.exit_code(job)]
        super().submit(job)


class Working(Diverging):
    """Jobs that take a moment. lasting: what was submitted stands in a folder, for whoever attaches."""

    def __init__(self, folder: Path, *, lasting: bool, diverges: bool = False) -> None:
        super().__init__()
        self.diverges = diverges
        self.truth = Truth(folder)
        self.cluster = folder.with_suffix(".cluster") if lasting else None
        self.at_work: dict[str, _AtWork] = {}

    def submit(self, job: Job) -> None:
        begun = _AtWork(job, f"{job.job_id}@{time.time_ns()}", time.time())
        self.truth.note("begun", submission=begun.submission)
        if self.cluster is not None:
            self.cluster.mkdir(exist_ok=True)
            told = {"submission": begun.submission, "began": begun.began, "words": job.arguments}
            self._place(job.job_id).write_text(json.dumps({**told, "log": str(job.log)}), encoding="utf-8")
        self.at_work[job.job_id] = begun

    def attach(self, job_id: str, folder: Path | str) -> bool:
        if self.cluster is None or not self._place(job_id).exists():
            return False
        told = json.loads(self._place(job_id).read_text(encoding="utf-8"))
        job = Job(job_id, tuple(told["words"]), Path(told["log"]), Path(folder))
        self.at_work[job_id] = _AtWork(job, told["submission"], told["began"])
        return True

    def wait(self, timeout_s: float) -> list[JobEnd]:
        if self.at_work and timeout_s:
            time.sleep(TOOK_S / 4)
        due = [a for a in self.at_work.values() if time.time() - a.began >= TOOK_S]
        return [self._end(a, self.exit_code(a.job) if self.diverges else 0) for a in due]

    def state(self, job_id: str) -> JobState:
        return "running" if job_id in self.at_work else "ended"

    def cancel(self, job_id: str) -> JobEnd | None:
        begun = self.at_work.get(job_id)
        return None if begun is None else self._end(begun, -15)

    def _end(self, begun: _AtWork, code: int) -> JobEnd:
        if code == 0:
            self.work(begun.job)
        elif code > 0:
            self.fail(begun.job)
        seconds = TOOK_S if self.cluster is not None else time.time() - begun.began
        self.truth.note("ended", submission=begun.submission, seconds=seconds)
        del self.at_work[begun.job.job_id]
        name = begun.submission if self.cluster is not None else ""
        return JobEnd(begun.job.job_id, code, seconds, submission=name)

    def _place(self, job_id: str) -> Path:
        assert self.cluster is not None
        return self.cluster / job_id.replace(":", "-")


def die_at(how: str, point: int, truth: Truth) -> None:
    """From now on this process is killed at that append to a sweep's journal."""
    original = Journal.append

    def die() -> None:
        truth.note("killed")
        os.kill(os.getpid(), signal.SIGKILL)

    def append(self: Journal, kind: str, **data: Any) -> Event:
        if self.path.name != JOURNAL or len(self.events) != point:
            return original(self, kind, **data)
        if how == "torn":
            line = journal_module._encode(Event(point, kind, data, "2026-01-01T00:00:00Z"))
            with open(self.path, "ab") as file:
                file.write(line[: len(line) // 2])
        if how != "after":
            die()
        event = original(self, kind, **data)
        die()
        return event

    Journal.append = append  # type: ignore[method-assign] # this process is about to die


def in_a_process_of_its_own(work: Callable[[], None]) -> int:
    """Its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    code = 1
    try:
        work()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def drive(folder: Path, plan: str, *, lasting: bool) -> None:
    course(plan, folder, lambda: Working(folder, lasting=lasting, diverges=plan != "smoke"))


def killed(folder: Path, plan: str, how: str, point: int, *, lasting: bool) -> dict[str, Any]:
    """Killed there, gone on with, and what came of it."""
    truth = Truth(folder)

    def doomed() -> None:
        die_at(how, point, truth)
        drive(folder, plan, lasting=lasting)

    status = in_a_process_of_its_own(doomed)
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise RuntimeError(f"the driver was not killed {how} append {point}")
    if in_a_process_of_its_own(lambda: drive(folder, plan, lasting=lasting)) != 0:
        raise RuntimeError(f"killed {how} append {point}, the next driver failed")
    return {"how": how, "point": point, **outcome(folder)}


def paid_twice(state: SweepState) -> list[str]:
    """Jobs that were submitted again after they had ended well, and attempts with more ends or fewer than one."""
    done: set[str] = set()
    ends: Counter[int] = Counter()
    found = []
    for event in state.journal.events:
        if event.kind == "job_intent":
            ends[event.number] = 0
            found += [event.data["job"]] if event.data["job"] in done else []
        elif event.kind == "job_ended":
            ends[event.data["attempt"]] += 1
            if event.data["exit_code"] == 0 and not event.data["refused"]:
                done.add(event.data["job"])
    return [*found, *(f"attempt {number}: {n} ends" for number, n in ends.items() if n != 1)]


def outcome(folder: Path) -> dict[str, Any]:
    state = SweepState(folder)
    ends, spend = state.journal.of("job_ended"), Ledger(state).spent()["sweep"]
    seconds, launches = Truth(folder).worked()
    return {
        "digest": result_digest(state),
        "intents": [event.number for event in state.journal.of("job_intent")],
        "paid": sorted(event.data["attempt"] for event in ends),
        "abandoned": sum("abandoned" in event.data for event in ends),
        "seconds": spend.seconds,
        "attempts": spend.attempts,
        "worked_s": seconds,
        "launches": launches,
        "events": len(state.journal.events),
        "kinds": sorted({event.kind for event in state.journal.events}),
        "paid_twice": paid_twice(state),
    }


def main(folder: str, kind: str, plan: str, *points: str) -> None:
    lasting = kind == "lasting"
    whole = Path(folder) / "whole"
    whole.parent.mkdir(parents=True, exist_ok=True)
    drive(whole, plan, lasting=lasting)
    print(json.dumps({"how": "whole", "point": -1, **outcome(whole)}), flush=True)
    number = len(SweepState(whole).journal.events)
    for how, _, which in (point.partition(":") for point in points):
        step = 1 if which == "all" else int(which.removeprefix("every-"))
        chosen = range(0, number, step) if not which.isdecimal() else [int(which)]
        for point in chosen:
            place = Path(folder) / f"{how}-{point}"
            print(json.dumps(killed(place, plan, how, point, lasting=lasting)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
