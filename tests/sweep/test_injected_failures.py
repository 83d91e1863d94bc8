"""Failures that really happen: memory that is not there, weights that blow up; the rules cure them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import DivergenceError
from universal_simulator.executors.local_process import LocalProcessExecutor
from universal_simulator.experiment import run
from universal_simulator.run_record import RunRecord, read_document
from universal_simulator.sweep.driver import run_sweep
from universal_simulator.sweep.plan import Member, load_plan
from universal_simulator.sweep.recovery import heal

#: far above the edge of this model (about 1.0); two or three healings take it below
EXPLODES = ("training.operator.learning_rate=2.0",)
CHEAP = (
    "training.validations=1",
    "training.validation_groups=1",
    "evaluation.steps=10",
    "evaluation.small_groups=2",
    "evaluation.bootstrap_samples=10",
    "evaluation.classical_points=[32]",
)


@pytest.mark.usefixtures("without_pages")
def test_weights_that_blow_up_are_healed_and_the_run_finishes(tmp_path: Path, smoke_data: Dataset) -> None:
    # the operator's stage is the one that explodes; what comes after it would only take time
    words = [*CHEAP, *EXPLODES, "training.stages=[codec,operator]", f"data.file={smoke_data.path}"]
    ended: list[Path] = []
    for _ in range(5):
        loaded = load_config("rerun_txxoc8a8", words, profile="smoke")
        try:
            record = run(loaded, tmp_path)
        except DivergenceError:
            (path,) = set(tmp_path.glob("artifacts/runs/*/summary.json")) - set(ended)
            ended.append(path)
            record = read_document(path, RunRecord)
        if record.status == "finished":
            break
        effective = flatten(loaded.config.model_dump(mode="json"))
        healing = heal(record.failure_kind, record.failure or "", effective)
        assert healing is not None
        words += healing.overrides
    assert ended, "nothing blew up"
    assert record.status == "finished"
    assert loaded.config.training.operator.learning_rate == pytest.approx(2.0 * 0.7 ** len(ended))


STARVED = """
import json, resource, sys
from pathlib import Path
from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.errors import MemoryExhaustedError
from universal_simulator.experiment import run
from universal_simulator.run_record import RunRecord, read_document
from universal_simulator.sweep.recovery import heal

folder = Path(sys.argv[1])
words = ["training.batch_size=512", "training.stages=[operator]", "training.operator.steps=1",
         "training.rollout_curriculum=[1]", "training.curriculum_shares=[1.0]", "threads=1", *sys.argv[2:]]

def load(*more):
    return load_config("rerun_txxoc8a8", [*words, *more], profile="smoke")

def used(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

run(load("training.micro_batch_size=255", "seed=1"), folder)   # what half a batch needs is mapped now
limit = used("VmData") + 48 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
told, healings = [], []
for generation in range(4):
    config = load(*(word for healing in healings for word in healing.overrides))
    try:
        record = run(config, folder)
        break
    except MemoryExhaustedError as error:
        told.append(str(error))
        healings.append(heal(type(error).__name__, str(error), flatten(config.config.model_dump(mode="json"))))
print(json.dumps({
    "told": told,
    "sizes": [h.after["training.micro_batch_size"] for h in healings],
    "status": record.status,
    "batch": config.config.training.batch_size,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds anonymous memory on Linux only")
def test_a_real_memory_limit_is_healed_by_smaller_micro_batches(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", STARVED, str(tmp_path), *CHEAP], capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["told"], "the limit was never felt"
    assert "training.micro_batch_size" in found["told"][0]
    assert found["status"] == "finished"
    assert found["batch"] == 512
    assert found["sizes"][:2] == [510, 255]


@pytest.mark.slow
def test_a_sweep_heals_a_member_that_blows_up(tmp_path: Path) -> None:
    plan = load_plan("smoke")
    wild = Member(config="rerun_txxoc8a8", overrides=EXPLODES, seed=7, forced=True)
    healing = plan.healing.model_copy(update={"generations": 4})
    rounds = (plan.rounds[0].model_copy(update={"members": (wild,)}),)
    plan = plan.model_copy(update={"rounds": rounds, "references": (), "healing": healing})
    state = run_sweep(plan, tmp_path, executor=LocalProcessExecutor(2))
    sick, *_, cured = state.members()
    assert state.failed(f"train:{sick.run_id}")
    assert state.done(f"train:{cured.run_id}")
    assert state.decision("champion") is not None
