"""A trained run with its stochastic stages, and the capacity control it is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from universal_simulator import experiment
from universal_simulator.assessment import subject_of
from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.schema import RunConfig
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset, open_dataset
from universal_simulator.errors import UserError
from universal_simulator.model.surrogate import Surrogate, load_surrogate
from universal_simulator.run_record import RunFolder, RunRecord, StochasticResult, read_document

#: optimiser steps by which the operations of a control's step are measured: enough that every length of the
#: rollout curriculum has its share, rounded to whole steps
PROBE_STEPS = 40
#: of a control's training operations over its run's, and of its parameters: beyond, it is no control
FLOPS_SHARES = (0.97, 1.03)
PARAMETER_SHARES = (0.9, 1.1)


@dataclass(frozen=True)
class Run:
    """A trained run and its config; `found`: what its record says of corrector and student."""

    files: RunFolder
    record: RunRecord
    config: RunConfig
    found: StochasticResult

    @classmethod
    def of(cls, path: Path) -> Run:
        files = RunFolder.of_path(path)
        record = read_document(files.summary, RunRecord)
        config = validate(RunConfig, read_mapping(files.config)["config"], str(files.config))
        if record.training is None or record.training.result.stochastic is None:
            raise UserError(
                f"{path} trained no corrector, or before records told what it is worth: train it with the "
                "stages diff_residual and consistency_distill"
            )
        return cls(files, record, config, record.training.result.stochastic)

    @property
    def dataset(self) -> Dataset:
        return open_dataset(subject_of(self.files.path).data_file or "")

    def load(self, dataset: Dataset, split: str, groups: int | None) -> Trajectories:
        evaluation = self.config.evaluation
        return dataset.load(
            split,
            time_stride=self.config.data.time_stride,
            first_frame=evaluation.first_frame,
            num_frames=None if evaluation.steps is None else evaluation.steps + 1,
            max_groups=groups,
        )


def trained(name: str, profile: str, folder: Path, words: list[str]) -> Path:
    record = experiment.run(load_config(name, words, profile=profile), folder)
    return RunFolder(folder, record.run_id).path


def control_of(run: Run, name: str, profile: str, folder: Path, words: list[str]) -> Path:
    """Train the capacity control of a run: as wide as its parameters, as long as its operations.

    Raises UserError where either share is out of bounds: it would be no control.
    """
    assert run.record.training is not None
    config, width = run.config, nearest_width(load_surrogate(run.files.model))
    stages = [s for s in config.training.stages if s in ("codec", "operator")]
    words = [*words, f"training.stages=[{','.join(stages)}]", f"model.options.operator.hidden={width}"]
    probe = [
        f"training.{stage}.{key}={PROBE_STEPS}" for stage in stages for key in ("steps", "patience_steps")
    ]
    cheap = ["training.validations=1", "evaluation.small_groups=1", "evaluation.classical_points=[]"]
    spent = flops_by_stage(trained(name, profile, folder, [*words, *probe, *cheap]))
    left = run.record.training.result.training_flops
    if "codec" in stages:
        left -= spent["codec"] / PROBE_STEPS * config.training.codec.steps
    steps = max(PROBE_STEPS, round(left / (spent["operator"] / PROBE_STEPS)))
    length = [f"training.operator.steps={steps}", f"training.operator.patience_steps={steps}"]
    control = trained(name, profile, folder, [*words, *length])
    control_shares(run, control, FLOPS_SHARES)
    return control


def nearest_width(target: Surrogate) -> int:
    """Of the operator's widths that its heads and groups divide, that whose member alone is nearest in
    parameters to the whole target."""
    operator, wanted = target.architecture.options["operator"], target.num_parameters()
    step, width = math.lcm(operator["heads"], operator["group_size"]), operator["hidden"]
    sizes = {width: alone(target, width).num_parameters()}
    while sizes[width] <= wanted:
        width += step
        sizes[width] = alone(target, width).num_parameters()
    return min(sizes, key=lambda one: abs(sizes[one] - wanted))


def control_shares(run: Run, control: Path, allowed: tuple[float, float]) -> tuple[float, float]:
    """The control's training operations and parameters over its run's; out of bounds: UserError.

    allowed: of the operations; the parameters' bounds are `PARAMETER_SHARES`, as widths come in steps.
    """
    files = RunFolder.of_path(control)
    ours, theirs = run.record.training, read_document(files.summary, RunRecord).training
    assert ours is not None
    assert theirs is not None
    shares = (
        theirs.result.training_flops / ours.result.training_flops,
        load_surrogate(files.model).num_parameters() / load_surrogate(run.files.model).num_parameters(),
    )
    for share, what, (low, high) in zip(
        shares, ("training operations", "parameters"), (allowed, PARAMETER_SHARES), strict=True
    ):
        # to the two digits in which the bounds are said
        if not low - 0.005 <= share <= high + 0.005:
            raise UserError(
                f"{control.name} has {share:.3f} of the {what} of {run.files.run_id}, allowed {low:g} to {high:g}: it "
                "is no control; train it anew, or let stochastic_ablation.py take --control-shares LOW HIGH of the "
                "operations and tell the share with the result"
            )
    return shares


def alone(surrogate: Surrogate, width: int) -> Surrogate:
    """The member alone, its operator as wide as said."""
    told = surrogate.architecture
    options = {**told.options, "operator": {**told.options["operator"], "hidden": width}}
    dropped = {"corrector": None, "sampler": None, "calibration": None, "reward": None}
    return Surrogate(told.model_copy(update={"options": options, **dropped}))


def flops_by_stage(path: Path) -> dict[str, float]:
    record = read_document(RunFolder.of_path(path).summary, RunRecord)
    assert record.training is not None
    return {name: float(v) for name, v in record.training.observation["training_flops_by_stage"].items()}
