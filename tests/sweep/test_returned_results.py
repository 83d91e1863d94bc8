"""What an evaluation does to its run's record: believed where it is true, and no finished run is lost by a lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from tests.sweep.test_driver import Killed
from tests.sweep.test_forecast import lie
from universal_simulator.errors import ExecutorError
from universal_simulator.run_record import RunFolder, RunRecord, read_document, write_json
from universal_simulator.sweep.driver import rebuild_reports, run_sweep
from universal_simulator.sweep.executor import Job, JobEnd
from universal_simulator.sweep.leaderboard import result_digest
from universal_simulator.sweep.plan import load_plan
from universal_simulator.sweep.state import SweepState

PLAN = load_plan("smoke")
Spoil = Callable[[RunFolder], None]


def foreign_evaluation(files: RunFolder) -> None:
    record = read_document(files.summary, RunRecord)
    changed = {name: e.model_copy(update={"run_id": "another"}) for name, e in record.evaluations.items()}
    write_json(files.summary, record.model_copy(update={"evaluations": changed}))


def evaluated_by(code: str | None) -> Spoil:
    """The suite that came last says another code than the sweep's, or none."""

    def spoil(files: RunFolder) -> None:
        record = read_document(files.summary, RunRecord)
        name = next(name for name in ("test", "full_eval") if name in record.evaluations)
        seen = {key: v for key, v in record.evaluations[name].observation.items() if key != "code_version"}
        seen |= {} if code is None else {"code_version": code}
        changed = record.evaluations[name].model_copy(update={"observation": seen})
        write_json(
            files.summary, record.model_copy(update={"evaluations": {**record.evaluations, name: changed}})
        )

    return spoil


SPOILED: dict[str, tuple[Spoil, str]] = {
    "config": (lambda files: lie(files, config_hash="0" * 64), "its config 0000000000"),
    "validation": (lambda files: lie(files, validation={"best_nrmse": 0.0}), "training is not the one the"),
    "foreign": (foreign_evaluation, "is of another"),
    "other code": (evaluated_by("f" * 64), "was asked by other code .ffffffffff, here"),
    "no code": (evaluated_by(None), "was asked by other code .not told, here"),
    "torn": (lambda files: files.summary.write_text('{"run_id": "x'), "is not a valid RunRecord"),
    "gone": (lambda files: files.summary.unlink(), "no record came back"),
}


class LyingOnce(FakeExecutor):
    """In the place of sound ones. The first evaluation of a suite rewrites the record of its run; then the driver dies, or is told `code`."""

    def __init__(self, suite: str, spoil: Spoil, *, code: int = 0, dies: bool = False) -> None:
        super().__init__()
        self.suite, self.spoil, self.code, self.dies = suite, spoil, code, dies
        self.lied: str | None = None

    @property
    def place(self) -> str:
        return FakeExecutor.__name__

    def submit(self, job: Job) -> None:
        super().submit(job)
        if self.lied is None and job.job_id.startswith(f"{self.suite}:"):
            self.lied = job.job_id.partition(":")[2]
            self.spoil(RunFolder.of_path(job.arguments[1]))
            self.ended[-1] = JobEnd(job.job_id, self.code, 0.1)
            if self.dies:
                raise Killed

    def cancel(self, job_id: str) -> JobEnd | None:
        if self.dies:
            raise Killed
        return super().cancel(job_id)


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return result_digest(run_sweep(PLAN, tmp_path_factory.mktemp("true"), executor=FakeExecutor()))


@pytest.mark.parametrize("suite", ["full", "test"])
@pytest.mark.parametrize("how", SPOILED)
def test_a_worker_that_lies_in_an_evaluation_takes_no_finished_run_away(
    tmp_path: Path, digest: str, suite: str, how: str
) -> None:
    spoil, words = SPOILED[how]
    executor = LyingOnce(suite, spoil)
    with pytest.raises(ExecutorError, match=words):
        run_sweep(PLAN, tmp_path, executor=executor)
    assert executor.lied is not None
    files, state = RunFolder(tmp_path, executor.lied), SweepState(tmp_path)
    (refused,) = [e for e in state.journal.of("job_ended") if e.data["refused"]]
    assert refused.data["results"] == {}
    record = read_document(files.summary, RunRecord)
    assert record.training is not None, "what was trained is as the journal saw it"
    assert state.holds(files.summary, executor.lied)
    assert {"full": "full_eval", "test": "test"}[suite] not in record.evaluations
    assert how == "gone" or len(list(files.path.glob(f"refused-{suite}-*.json"))) == 1, "kept as evidence"
    rebuild_reports(tmp_path)
    sound = FakeExecutor()
    finished = run_sweep(PLAN, tmp_path, executor=sound)
    assert sound.submitted[0] == refused.data["job"]
    assert not any(job.startswith("train:") for job in sound.submitted)
    assert result_digest(finished) == digest
    assert not list(tmp_path.rglob(".before-*")), "nothing is left of what was kept"


@pytest.mark.parametrize("how", SPOILED)
def test_a_record_spoiled_when_the_driver_died_is_put_back(tmp_path: Path, digest: str, how: str) -> None:
    executor = LyingOnce("full", SPOILED[how][0], dies=True)
    with pytest.raises(Killed):
        run_sweep(PLAN, tmp_path, executor=executor)
    rebuild_reports(tmp_path)
    assert result_digest(run_sweep(PLAN, tmp_path, executor=FakeExecutor())) == digest


def test_an_evaluation_that_fails_leaves_the_record_as_it_was(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ExecutorError, match="incomplete: 1 job"):
        run_sweep(PLAN, tmp_path, executor=LyingOnce("full", SPOILED["config"][0], code=1))
    assert result_digest(run_sweep(PLAN, tmp_path, executor=FakeExecutor())) == digest
