"""What a sweep's driver costs by itself, at thousands of members: real journal, gates and pages, no training.

    python benchmarks/simulated_sweep.py --members 1000 3000 10000 --out benchmarks/results/DATE-simulated-sweep.json

Every member is a config file of its own; the executor writes at once the record that its run would
write (two regimes, 32 groups in small-eval and 256 in full-eval, curves of 100 frames: about the size of
a real one). So what is measured is the plan's reading, identities, journal with its fsyncs, gates with
their bootstraps, promotion, leaderboard and page. Each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from universal_simulator.configuration import load_config
from universal_simulator.identity import code_version
from universal_simulator.run_record import (
    EvaluationRecord,
    EvaluationResult,
    Metric,
    Predictor,
    Protocol,
    RegimeResult,
    RunFolder,
    RunRecord,
    TrainingRecord,
    TrainingResult,
    content_hash,
    read_document,
    write_atomically,
    write_json,
)
from universal_simulator.sweep.driver import rebuild_reports, run_sweep
from universal_simulator.sweep.executor import Executor, Job, JobEnd
from universal_simulator.sweep.journal import Journal
from universal_simulator.sweep.leaderboard import leaderboard_path, write_leaderboard
from universal_simulator.sweep.plan import load_plan
from universal_simulator.sweep.report import report_path
from universal_simulator.sweep.state import SweepState

REGIMES = ("nu=0.05", "nu=0.1")
GROUPS = {"small_eval": 32, "full_eval": 256, "test": 256}
FRAMES = 100
METRICS = (
    "nrmse_step", "nrmse_median", "nrmse_p95", "nrmse_raw", "rel_l2", "vrmse", "rmse", "max_error",
    "rmse_boundary", "rmse_fourier_low", "rmse_fourier_mid", "rmse_fourier_high", "reconstruction",
    "trivial_ratio", "conservation_gap", "conservation_gap_guarded", "conservation_gap_reference",
    "bc_violation", "dissipation_violation", "pde_residual", "spectrum_error", "horizon", "failure_rate",
)  # fmt: skip


def evaluation(run_id: str, quality: float, suite: str) -> EvaluationRecord:
    """Values vary over groups by 10 %, in the same way for every run."""
    chance = random.Random(run_id)
    groups = tuple(content_hash(i)[:16] for i in range(GROUPS[suite]))
    per_group = tuple(quality * (0.9 + 0.2 * i / len(groups)) for i in range(len(groups)))
    metrics = {name: Metric(value=quality / 20 * chance.uniform(0.9, 1.1)) for name in METRICS}
    metrics |= {
        "nrmse": Metric(value=quality, low=0.9 * quality, high=1.1 * quality),
        "ece": Metric(value=0.03),
        "crps_skill": Metric(value=0.1),
    }
    curve = tuple(quality * frame / FRAMES for frame in range(FRAMES))
    regime = RegimeResult(
        parameters={"nu": 0.05},
        metrics=metrics,
        groups=groups,
        per_group={"nrmse": per_group},
        curves={"nrmse": curve, "correlation": curve},
    )
    protocol = Protocol(
        name="rollout", dataset_identity="d", split=suite, first_frame=0, time_stride=2, steps=64,
        points=64, num_groups=len(groups), groups_hash="g",
    )  # fmt: skip
    predictor = Predictor(model_hash=content_hash(run_id), weights="ema", guards=("mass_projection",))
    result = EvaluationResult(protocol=protocol, predictor=predictor, regimes=dict.fromkeys(REGIMES, regime))
    observed = {"wall_clock_s": 1.0, "code_version": code_version()}
    return EvaluationRecord(suite=suite, run_id=run_id, result=result, observation=observed)


def training(run_id: str, words: list[str]) -> TrainingRecord:
    """With the identity that the driver holds the record to."""
    given = [word for word in words[2:] if "=" in word]
    loaded = load_config(words[1], given, profile=words[words.index("--profile") + 1])
    name, seed = loaded.config.name, loaded.config.seed
    result = TrainingResult(
        config_name=name, config_hash=loaded.hash, effective_config={"name": name, "seed": seed},
        data_identity="d", code_version=code_version(), seed=seed, params=10, optimiser_steps=5, training_flops=1e9,
        model_hash=content_hash(run_id), weights_kept="ema",
        validation={"best_nrmse": 0.1, "best_step": 5.0}, stages=("operator",),
    )  # fmt: skip
    return TrainingRecord(result=result, observation={"wall_clock_s": 2.0})


class FabricatingExecutor(Executor):
    """Ends every job at once with the record its run would write."""

    slots = 64

    def __init__(self) -> None:
        self.ended: list[JobEnd] = []
        self.seconds = self.cpu_s = 0.0

    def submit(self, job: Job) -> None:
        started, cpu = time.perf_counter(), time.process_time()
        words = list(job.arguments)
        if words[0] == "data":
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text(json.dumps({"identity": "d", "path": "p"}) + "\n")
        elif words[0] == "run":
            run_id = words[words.index("--run-id") + 1]
            seed = int(next(w for w in words if w.startswith("seed=")).removeprefix("seed="))
            baseline = words[1].startswith("rerun")
            quality = 0.1 + 0.002 * seed if baseline else 0.05 * random.Random(run_id).uniform(0.8, 1.5)
            record = RunRecord(
                run_id=run_id,
                status="finished",
                training=training(run_id, words),
                evaluations={"small_eval": evaluation(run_id, quality, "small_eval")},
            )
            files = RunFolder(words[words.index("--folder") + 1], run_id)
            write_json(files.summary, record)
            files.model.touch()
        else:
            files = RunFolder.of_path(Path(words[1]))
            suite = {"full": "full_eval", "test": "test"}[words[words.index("--suite") + 1]]
            record = read_document(files.summary, RunRecord)
            quality = (
                record.evaluations["small_eval"].result.regimes[REGIMES[0]].metrics["nrmse"].value or 1.0
            )
            added = {**record.evaluations, suite: evaluation(files.run_id, quality, suite)}
            write_json(files.summary, record.model_copy(update={"evaluations": added}))
        self.ended.append(JobEnd(job.job_id, 0, 0.001))
        self.seconds += time.perf_counter() - started
        self.cpu_s += time.process_time() - cpu

    def wait(self, timeout_s: float) -> list[JobEnd]:
        ended, self.ended = self.ended, []
        return ended

    def attach(self, job_id: str, folder: Path | str) -> bool:
        return False

    def state(self, job_id: str) -> Any:
        return "unknown"

    def cancel(self, job_id: str) -> JobEnd | None:
        return None

    def tail(self, job_id: str, lines: int = 12) -> str:
        return ""

    def cancel_all(self) -> None:
        self.ended = []


def write_plan(folder: Path, members: int) -> Path:
    """One round of that many members, each a file that changes the learning rate a little."""
    lines = []
    for i in range(members):
        path = folder / f"member_{i:05d}.yaml"
        rate = 3e-4 * (1 + i / members)
        path.write_text(
            f"extends: sweep_round_a_lr3e4_w5\ntraining: {{operator: {{learning_rate: {rate:.10e}}}}}\n"
        )
        lines.append(f"      - {{config: {path}}}\n")
    plan = folder / "plan.yaml"
    plan.write_text(
        "extends: smoke\nname: simulated\nreferences: []\nmax_hours: 1000\nrounds:\n  - name: A\n"
        "    hypothesis: None; this plan measures the driver.\n    forecast: {relative_reduction: [0.2, 0.4]}\n"
        "    promote: 3\n    members:\n" + "".join(lines)
    )
    return plan


def cpu_s(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of this process: what other work on the machine does not change."""
    started = time.process_time()
    value = work()
    return time.process_time() - started, value


def measure(members: int) -> dict[str, float]:
    """Seconds, bytes and memory of one simulated sweep."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder, executor = root / "sweep", FabricatingExecutor()
        reading, plan = cpu_s(lambda: load_plan(write_plan(root, members)))
        started = time.perf_counter()
        whole, _ = cpu_s(lambda: run_sweep(plan, folder, executor=executor))
        wall = time.perf_counter() - started - executor.seconds
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        journal = folder / "journal.jsonl"
        replay, events = cpu_s(lambda: Journal(journal).events)
        records, _ = cpu_s(lambda: SweepState(folder).records())
        board, _ = cpu_s(lambda: write_leaderboard(SweepState(folder)))
        pages, _ = cpu_s(lambda: rebuild_reports(folder))
        again, _ = cpu_s(lambda: run_sweep(plan, folder, executor=FabricatingExecutor()))
        driver = whole - executor.cpu_s
        return {
            "members": members,
            "read_plan_cpu_s": reading,
            "driver_cpu_s": driver,
            "driver_cpu_s_per_member": driver / members,
            "driver_wall_s": wall,
            "events": float(len(events)),
            "journal_mib": journal.stat().st_size / 2**20,
            "replay_cpu_s": replay,
            "replay_and_records_cpu_s": records,
            "leaderboard_cpu_s": board,
            "leaderboard_and_page_cpu_s": pages,
            "resume_of_a_finished_sweep_cpu_s": again,
            "leaderboard_mib": leaderboard_path(folder).stat().st_size / 2**20,
            "page_mib": report_path(folder).stat().st_size / 2**20,
            "peak_memory_gib": peak,
        }


def growth(rows: list[dict[str, float]]) -> dict[str, float]:
    """Exponent of each figure between the smallest and the largest size: 1 is linear, 2 quadratic."""
    first, last = rows[0], rows[-1]
    span = math.log(last["members"] / first["members"]) if len(rows) > 1 else math.nan
    names = [name for name in first if name not in ("members", "driver_cpu_s_per_member")]
    return {name: math.log(last[name] / first[name]) / span for name in names} if len(rows) > 1 else {}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--members", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", type=int, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one is not None:
        print(json.dumps(measure(given.one)))
        return
    rows = []
    for members in given.members:
        command = [sys.executable, __file__, "--one", str(members)]
        answer = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if answer.returncode:
            raise SystemExit(answer.stderr)
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    document = {
        "command": f"python benchmarks/simulated_sweep.py --members {' '.join(map(str, given.members))}",
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
        "versions": {
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "sizes": rows,
        "growth_exponents": growth(rows),
    }
    text = json.dumps(document, indent=1) + "\n"
    if given.out is None:
        print(text)
    else:
        write_atomically(given.out, text)


if __name__ == "__main__":
    main(sys.argv[1:])
