"""What a sweep will take, measured before anything is spent, and afterwards held against what it took.

Every distinct config of the plan is calibrated once on the executor that will train it, as many at
a time as it has slots, so that what they take from each other is measured with them. A repeat with
another seed, a trial or a healed run is forecast like the config it comes from; a refinement as many times
that as the plan says it costs; what could not be measured by what the others took (`calibrations`). What each job is billed for beside its work is measured with them (`overhead`).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from universal_simulator.sweep.calibrations import calibration_jobs, keys_for, measured_members, stand_in
from universal_simulator.sweep.job_log import answer, tail
from universal_simulator.sweep.overhead import overhead_s, usd_per_second
from universal_simulator.sweep.spending import Spend
from universal_simulator.sweep.state import Run, SweepState

#: kind of job -> what of a calibration it takes, in seconds
PARTS = {"train": ("train_s", "small_eval_s"), "full": ("full_eval_s",), "test": ("full_eval_s",)}


@dataclass(frozen=True)
class Estimate:
    """Of one member: seconds, memory, price. Several seeds are one line."""

    key: str
    round: str
    role: str
    machine: str
    train_s: float
    small_eval_s: float
    full_eval_s: float
    peak_memory_gib: float
    #: how many runs of it are planned (seeds of the baseline)
    runs: int = 1
    #: else counted as the costliest of what was
    measured: bool = True

    def billed_s(self, overhead_s: float) -> float:
        """Of all its runs with their full-evals, each a job of its own."""
        return self.runs * (self.train_s + self.small_eval_s + self.full_eval_s + 2 * overhead_s)


def forecast_event(state: SweepState, spent: Spend) -> dict[str, Any]:
    """What the calibrations of a sweep answered, to be journalled: measured, and not measured with why; what
    each job is billed for beside its work, and what was spent up to here."""
    measured, unmeasured = {}, {}
    jobs = calibration_jobs(state.plan, state.folder)
    machines = {job.job_id: job.resources.machine_class for job in jobs.values()}
    for key, job in jobs.items():
        if state.done(job.job_id):
            measured[key] = answer(job.log)
        else:
            unmeasured[key] = tail(job.log)
    return {
        "measured": measured,
        "unmeasured": unmeasured,
        "overhead_s": round(overhead_s(state, machines), 3),
        "spent": {"hours": spent.seconds / 3600, "usd": round(spent.usd, 6)},
    }


def not_measured(told: Mapping[str, Any]) -> list[str]:
    """What a forecast leaves out and what stands for it, in words."""
    reasons = {key: (why.strip().splitlines() or ["no answer"])[-1] for key, why in told["unmeasured"].items()}
    return [
        f"{key} could not be measured ({why}) and is counted as the costliest of what was"
        for key, why in reasons.items()
    ]


class Forecast:
    """Reads the journalled forecast of a sweep; before there is one, everything is expected to take 0."""

    def __init__(self, state: SweepState) -> None:
        self.state = state

    def seconds(self, job_id: str) -> float:
        """What a job of a planned run is forecast to take, all of it; 0 where nothing is known."""
        kind, _, run_id = job_id.partition(":")
        run = self.state.run(run_id)
        if run is None or kind not in PARTS:
            return 0.0
        found = self.expected(run)
        return sum(float(found[part]) for part in PARTS[kind]) if found else 0.0

    def overhead_s(self, job_id: str) -> float:
        """What a job of a planned run is billed for beside its work, as measured; evaluations and scores too."""
        told = self.state.decision("forecast")
        if told is None or self.state.run(job_id.partition(":")[2]) is None:
            return 0.0
        return float(told.get("overhead_s", 0.0))

    def measured(self, run: Run) -> dict[str, Any] | None:
        """The calibration that stands for a run: its own, its target's compute, or its config's."""
        told = self.state.decision("forecast")
        if told is None:
            return None
        known: dict[str, dict[str, Any]] = told["measured"]
        key = next((key for key in keys_for(self.state.plan, run) if key in known), None)
        if key is None or run.role == "compute_matched" or key != run.config or not run.overrides:
            return None if key is None else known[key]
        # a refinement or a trial: like the config it comes from, times what the plan says that it costs more
        costs = {member.config: member.cost for member in reversed([*measured_members(self.state.plan)])}
        factor = run.cost / costs.get(run.config, run.cost)
        return {k: v * factor if k.endswith("eval_s") or k == "train_s" else v for k, v in known[key].items()}

    def expected(self, run: Run) -> dict[str, Any] | None:
        """As measured, else as the costliest of what was; None where there is no forecast."""
        told = self.state.decision("forecast")
        if told is None:
            return None
        return self.measured(run) or stand_in(self.state.plan, run, told["measured"])

    def estimates(self) -> list[Estimate]:
        """One line per planned member, in the order of the plan; several seeds are one line."""
        lines: dict[tuple[str, str], Estimate] = {}
        for run in self.state.runs:
            found = self.expected(run)
            if found is None:
                continue
            place = (run.round, run.key)
            if place in lines:
                lines[place] = Estimate(**{**asdict(lines[place]), "runs": lines[place].runs + 1})
                continue
            lines[place] = Estimate(
                key=run.key,
                round=run.round,
                role=run.role,
                machine=run.machine,
                train_s=float(found["train_s"]),
                small_eval_s=float(found["small_eval_s"]),
                full_eval_s=float(found["full_eval_s"]),
                peak_memory_gib=float(found["peak_memory_gib"]),
                measured=self.measured(run) is not None,
            )
        return list(lines.values())


def longest_first(runs: Sequence[str], forecast: Forecast) -> list[str]:
    """Run ids in the order in which their full-evals are launched.

    References first: the pages of the others show them beside their own figures. Then the longest,
    or the machine waits for it alone: by its forecast, where there is none by the run's own small-eval.
    """
    small = forecast.state.evaluations("small_eval")

    def key(run_id: str) -> tuple[bool, float]:
        run = forecast.state.run(run_id)
        took = small[run_id].observation.get("wall_clock_s", 0.0) if run_id in small else 0.0
        seconds = forecast.seconds(f"full:{run_id}") or float(took)
        return run is None or run.role != "reference", -seconds

    return sorted(runs, key=key)


@dataclass(frozen=True)
class Totals:
    """Of the written rounds. wall_s: on so many workers; worker hours and their price do not depend on them.

    usd: of all of it, the test opening, the references and what `jobs` jobs are billed for beside their work
    (overhead_s each) included. spent_*: before the forecast (canary, calibrations), on top of it. Promoted are the forced members and, of each round, as many as it promotes of the costliest.
    """

    wall_s: float
    worker_hours: float
    usd: float
    peak_memory_gib: float
    full_evals: int
    references_s: float
    jobs: int = 0
    overhead_s: float = 0.0
    spent_hours: float = 0.0
    spent_usd: float = 0.0
    #: why the plan's ceilings would stop it, in words
    crosses: tuple[str, ...] = ()


def totals(state: SweepState, *, workers: int) -> Totals:
    """Sum of the forecast, the test opening included."""
    forecast = Forecast(state)
    told = state.decision("forecast") or {"measured": {}}
    idle_s, spent = float(told.get("overhead_s", 0.0)), told.get("spent", {"hours": 0.0, "usd": 0.0})
    references = max((float(m["references_s"]) for m in told["measured"].values()), default=0.0)
    memory = max((float(m["peak_memory_gib"]) for m in told["measured"].values()), default=0.0)
    promoted = _promoted_at_most(state, forecast)
    judged = [run for run in state.runs if run.role != "member" or run.run_id in promoted]
    full = {run.run_id: forecast.seconds(f"full:{run.run_id}") for run in judged}
    longest = [run for run_id in longest_first(list(full), forecast) if (run := state.run(run_id))]
    opened = 2 + sum(run.role == "reference" for run in state.runs)
    test = sorted(judged, key=lambda run: -full[run.run_id])[: opened * state.plan.open_test_for_champion]
    train = sorted(state.runs, key=lambda run: -run.cost)
    parts = [[(run, forecast.seconds(f"train:{run.run_id}")) for run in train]]
    parts += [[(run, full[run.run_id]) for run in runs] for runs in (longest, test)]
    jobs = [job for part in parts for job in part]
    seconds = sum(took for _, took in jobs) + 2 * references
    usd = sum(usd_per_second(state.plan, run.machine) * (took + idle_s) for run, took in jobs)
    usd += usd_per_second(state.plan, "small") * 2 * references
    wall = 2 * references + sum(makespan([took + idle_s for _, took in part], workers) for part in parts)
    found = Totals(
        wall,
        seconds / 3600,
        usd,
        memory,
        len(full),
        references,
        jobs=len(jobs),
        overhead_s=idle_s,
        spent_hours=spent["hours"],
        spent_usd=spent["usd"],
    )
    return replace(found, crosses=_crosses(state, found))


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last of these jobs ends, begun in this order as workers come free."""
    free = [0.0] * max(1, workers)
    for item in seconds:
        heapq.heappush(free, heapq.heappop(free) + item)
    return max(free)


def _promoted_at_most(state: SweepState, forecast: Forecast) -> set[str]:
    chosen = set()
    for round_ in state.plan.rounds:
        forced = {member.key for member in round_.members if member.forced}
        members = state.members(round_.name)
        chosen |= {run.run_id for run in members if run.key in forced}
        rest = [run.run_id for run in members if run.key not in forced]
        rest.sort(key=lambda run_id: -forecast.seconds(f"full:{run_id}"))
        chosen |= set(rest[: round_.promote])
    return chosen


def _crosses(state: SweepState, found: Totals) -> tuple[str, ...]:
    """With what was spent before: the ceilings count it too."""
    plan, words = state.plan, []
    hours, usd = found.worker_hours + found.spent_hours, found.usd + found.spent_usd
    if hours > plan.max_hours:
        words.append(f"{hours:.3g} worker hours are forecast, max_hours is {plan.max_hours:g}")
    if plan.budget.sweep.usd is not None and usd > plan.budget.sweep.usd:
        words.append(f"{usd:.2f} USD are forecast, budget.sweep.usd is {plan.budget.sweep.usd:g}")
    return tuple(words)


def as_document(state: SweepState, *, workers: int) -> dict[str, Any]:
    """The forecast as one JSON document: a line per member, what was not measured, totals."""
    told = state.decision("forecast") or {"unmeasured": {}}
    idle_s = float(told.get("overhead_s", 0.0))
    members = [
        {**asdict(line), "usd": line.billed_s(idle_s) * usd_per_second(state.plan, line.machine)}
        for line in Forecast(state).estimates()
    ]
    return {
        "plan": state.plan.name,
        "workers": workers,
        "members": members,
        "unmeasured": told["unmeasured"],
        "total": asdict(totals(state, workers=workers)),
    }


@dataclass(frozen=True)
class Outcome:
    """One run's forecast beside what it took; seconds and dollars of its jobs, all attempts, and what they are
    billed for beside their work."""

    run_id: str
    what: str
    forecast_s: float
    took_s: float
    forecast_usd: float
    took_usd: float
    forecast_gib: float | None = None
    took_gib: float | None = None


def outcomes(state: SweepState) -> list[Outcome]:
    """Every job of every forecast run that has ended, in the order of planning."""
    forecast, found = Forecast(state), []
    took = {job: seconds for job, seconds in state.seconds_by_job().items() if state.done(job)}
    paid = state.usd_by_job()
    records = state.records()
    for run in state.runs:
        about = forecast.measured(run)
        for what in PARTS:
            job_id = f"{what}:{run.run_id}"
            if about is None or job_id not in took:
                continue
            memory: tuple[float | None, float | None] = (None, None)
            record = records.get(run.run_id)
            if what == "train" and record is not None and record.training is not None:
                memory = (float(about["peak_memory_gib"]), record.training.peak_memory_gib)
            seconds = forecast.seconds(job_id)
            usd = usd_per_second(state.plan, run.machine) * (seconds + forecast.overhead_s(job_id))
            found.append(Outcome(run.run_id, what, seconds, took[job_id], usd, paid[job_id], *memory))
    return found
