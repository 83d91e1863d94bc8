"""Training compute of every run beside the baseline's, and where the plan breaks its own rule.

The plan asks to "fix compute: keep batch tokens consistent". Batch tokens are the latent tokens an
optimiser step sees: batch_size x accumulation x latent_tokens (no tokens: not applicable).
"""

from __future__ import annotations

from dataclasses import dataclass

from universal_simulator.run_record import RunRecord
from universal_simulator.sweep.gates import paired_interval
from universal_simulator.sweep.rounds import headline_value
from universal_simulator.sweep.state import Run, SweepState

#: a run within this factor of the baseline keeps the rule
TOLERANCE = 1.1


@dataclass(frozen=True)
class ComputeRow:
    """Counted operations. headline_flops: of the stages that make the nrmse, flops_ratio: these to the baseline's;
    training_flops: of all stages. seconds: training and evaluation."""

    run_id: str
    role: str
    headline_flops: float
    training_flops: float
    flops_ratio: float
    optimiser_steps: int
    batch_tokens: int | None
    tokens_ratio: float | None
    seconds: float | None

    @property
    def keeps_the_rule(self) -> bool:
        ratios = [self.flops_ratio] + ([] if self.tokens_ratio is None else [self.tokens_ratio])
        return all(1 / TOLERANCE <= ratio <= TOLERANCE for ratio in ratios)


def compute_rows(state: SweepState) -> list[ComputeRow]:
    """Every trained run, least FLOPs first; empty until a baseline has trained."""
    records = state.records()
    baseline = next((records[r] for r in state.baselines() if r in records and records[r].training), None)
    if baseline is None:
        return []
    rows = [
        _row(run, records[run.run_id], baseline)
        for run in state.runs
        if run.run_id in records and records[run.run_id].training is not None
    ]
    return sorted(rows, key=lambda row: (row.headline_flops, row.run_id))


def _row(run: Run, record: RunRecord, baseline: RunRecord) -> ComputeRow:
    assert record.training is not None
    assert baseline.training is not None
    ours, theirs = record.training.result, baseline.training.result
    tokens, reference = batch_tokens(record), batch_tokens(baseline)
    return ComputeRow(
        run_id=run.run_id,
        role=run.role,
        headline_flops=ours.compared_flops,
        training_flops=ours.training_flops,
        flops_ratio=ours.compared_flops / theirs.compared_flops,
        optimiser_steps=ours.optimiser_steps,
        batch_tokens=tokens,
        tokens_ratio=tokens / reference if tokens and reference else None,
        seconds=record.wall_clock_s(),
    )


def batch_tokens(record: RunRecord) -> int | None:
    """Latent tokens per optimiser step of the operator stage."""
    assert record.training is not None
    config = record.training.result.effective_config
    tokens = config.get("model", {}).get("options", {}).get("latent_tokens")
    training = config.get("training", {})
    if tokens is None or "batch_size" not in training:
        return None
    return int(tokens * training["batch_size"] * training.get("accumulation", 1))


def rule_sentence(rows: list[ComputeRow]) -> str:
    """Where the plan breaks its own rule, in one sentence."""
    members = [row for row in rows if row.role == "member"]
    if not members:
        return ""
    breaking = [row for row in members if not row.keeps_the_rule]
    if not breaking:
        return f"Every member keeps the plan's rule to fix compute, within {TOLERANCE - 1:.0%}."
    flops = [row.flops_ratio for row in members]
    tokens = [row.tokens_ratio for row in members if row.tokens_ratio is not None]
    spans = [f"{min(flops):.2g} to {max(flops):.2g} times the baseline's training FLOPs"]
    if tokens:
        spans.append(f"{min(tokens):.2g} to {max(tokens):.2g} times its tokens per optimiser step")
    return (
        f"The plan asks to fix compute and breaks its own rule in {len(breaking)} of {len(members)} members: "
        f"they use {' and '.join(spans)}. A gain of a member that trained on more is a gain at more compute."
    )


@dataclass(frozen=True)
class ComputeMatch:
    """The baseline's config given another run's FLOPs, beside that run. gain: paired 95 % interval."""

    run_id: str
    target: str
    regime: str
    suite: str
    flops_ratio: float
    nrmse: float
    nrmse_target: float
    gain: tuple[float, float] | None


def compute_matches(state: SweepState) -> list[ComputeMatch]:
    """For every compute-matched reference: what of the target's gain is compute alone."""
    records, found = state.records(), []
    targets = {peer.key: peer.compute_matched_to for peer in state.plan.references}
    for run in state.runs:
        target = state.trained(targets.get(run.key) or "") if run.role == "compute_matched" else None
        record = records.get(run.run_id)
        if target is None or target.training is None or record is None or record.training is None:
            continue
        suites = ("full_eval", "small_eval")
        suite = next((s for s in suites if s in record.evaluations and s in target.evaluations), None)
        if suite is None:
            continue
        ours, theirs = record.evaluations[suite], target.evaluations[suite]
        for regime in ours.result.regimes:
            found.append(
                ComputeMatch(
                    run_id=run.run_id,
                    target=target.run_id,
                    regime=regime,
                    suite=suite,
                    flops_ratio=record.training.result.compared_flops / target.training.result.compared_flops,
                    nrmse=headline_value(ours, regime),
                    nrmse_target=headline_value(theirs, regime),
                    gain=paired_interval(theirs.result.regimes[regime], ours.result.regimes[regime]),
                )
            )
    return found
