"""Whether data hold what a run will ask of them, asked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.locations import DATA_FILES, find
from universal_simulator.configuration.schema import DataConfig, RunConfig
from universal_simulator.data import pdebench
from universal_simulator.data.dataset import Dataset
from universal_simulator.data.specification import DatasetSpec
from universal_simulator.data.splits import CALIBRATION_HALVES
from universal_simulator.errors import DataError
from universal_simulator.physics.equations import Equation, equation_named


@dataclass(frozen=True)
class Announced:
    """What a specification or a file's header says before any field is read."""

    equation: Equation
    frames: int


def announced(data: DataConfig) -> Announced | None:
    """None where the data are a file that does not lie here."""
    named = str(data.file or data.dataset)
    if Path(named).suffix not in DATA_FILES:
        source = find("configs/data", named)
        spec = validate(DatasetSpec, read_mapping(source), str(source))
        return Announced(equation_named(spec.equation), spec.frames)
    if not Path(named).is_file():
        return None
    header = pdebench.read_header(Path(named))
    return Announced(header.equation, header.shape[1])


def require_enough(config: RunConfig, dataset: Dataset, *, stochastic: bool) -> None:
    """DataError with all that the configured stages and the small-eval after them would miss.

    stochastic: the model has latent tokens, so the stochastic stages that the config names are trained.
    """
    faults = lacking_frames(config, dataset.header.shape[1], stochastic=stochastic)
    if _asks_calibration(config, stochastic=stochastic):
        groups = {dataset.groups[row] for row in dataset.rows("calibration")}
        if len(groups) < len(CALIBRATION_HALVES):
            faults.append(
                f"the calibration split has {len(groups)} initial condition(s), its halves (recalibration and learned "
                f"rewards) need {len(CALIBRATION_HALVES)}: bring more trajectories (a file without splits of its own "
                "needs 20), or leave out what is calibrated, training.stages=[codec,operator] ttc.enabled=false"
            )
    if faults:
        raise DataError(f"{dataset.path}: {'; '.join(faults)}")


def lacking_frames(config: RunConfig, frames: int, *, stochastic: bool) -> list[str]:
    """A sentence for everything that asks for more than `frames` frames of a trajectory."""
    return [
        f"{frames} frames, {needed} are needed for {what}; lower {keys} or data.time_stride"
        for needed, what, keys in _asked(config, stochastic=stochastic)
        if needed > frames
    ]


def _asked(config: RunConfig, *, stochastic: bool) -> Iterator[tuple[int, str, str]]:
    """(frames, for what, keys that change it); k steps of stride s need k s + 1 frames."""
    stride, evaluation = config.data.time_stride, config.evaluation
    longest = max(config.training.rollout_curriculum)
    each = f"of {stride} frame{'' if stride == 1 else 's'} each"
    yield longest * stride + 1, f"training on {longest} steps {each}", "training.rollout_curriculum"
    segment = config.model.reencode_every
    corrected = stochastic and "diff_residual" in config.training.stages
    if segment is not None and (corrected or config.ttc.enabled):
        yield segment * stride + 1, f"a segment of {segment} steps {each}", "model.reencode_every"
    first, steps = evaluation.first_frame, evaluation.steps or 1
    told = f"evaluating {steps} step{'' if steps == 1 else 's'} {each} from frame {first}"
    yield first + steps * stride + 1, told, "evaluation.steps, evaluation.first_frame"


def _asks_calibration(config: RunConfig, *, stochastic: bool) -> bool:
    ttc = config.ttc
    learns = ttc.enabled and (ttc.reward_steps > 0 or ttc.combine == "regress")
    return learns or (stochastic and "diff_residual" in config.training.stages)
