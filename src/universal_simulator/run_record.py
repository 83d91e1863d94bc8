"""The door between the two wings: what a run leaves on disk, and where.

A run folder holds everything one run produced. The science wing writes it, the sweep
wing reads it, and neither imports the other. Every document has two parts: `result`
is what the same config, data, code and seed must reproduce bit for bit; `observation`
is what happened this time (timestamps, seconds, memory, machine).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from universal_simulator.errors import IntegrityError, UserError

T = TypeVar("T", bound=BaseModel)
Better = Literal["lower", "higher", "one", "none"]


class RunFolder:
    """The names of all files of one run, below `experiment / artifacts / runs / run_id`."""

    def __init__(self, experiment: Path | str, run_id: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run_id):
            raise UserError(f"run id {run_id!r} is not a plain name: letters, digits, '.', '_' and '-' only")
        self.experiment = Path(experiment)
        self.run_id = run_id
        self.path = self.experiment / "artifacts" / "runs" / run_id

    @classmethod
    def of_path(cls, path: Path | str) -> RunFolder:
        """The run folder at `path` (`.../artifacts/runs/{run_id}`)."""
        path = Path(path).absolute()
        if path.parent.name != "runs" or path.parent.parent.name != "artifacts":
            raise UserError(f"{path} is not a run folder: expected EXPERIMENT/artifacts/runs/RUN_ID")
        return cls(path.parents[2], path.name)

    @property
    def config(self) -> Path:
        """Effective configuration as it ran (JSON, with its hash)."""
        return self.path / "config.json"

    @property
    def summary(self) -> Path:
        """The `RunRecord`: training and every evaluation of this run."""
        return self.path / "summary.json"

    def kept_before(self, job: str) -> Path:
        """The record as it was before an evaluation (full, test, ...; `*` for all) that has no end yet."""
        return self.path / f".before-{job}.json"

    @property
    def model(self) -> Path:
        """Released model: weights, architecture, normalisation, data identity, one hash."""
        return self.path / "model.safetensors"

    @property
    def operator_ema(self) -> Path:
        return self.path / "checkpoints" / "operator_ema.pt"

    @property
    def diffusion_ema(self) -> Path:
        return self.path / "checkpoints" / "diffusion_ema.pt"

    def training_state(self, stage: str) -> Path:
        """Everything a killed training needs to go on bit for bit."""
        return self.path / "checkpoints" / f"{stage}_state.pt"

    def metrics_log(self, stage: str) -> Path:
        """One JSON line per logged training step; grows, so it is also the heartbeat."""
        return self.path / f"metrics_{stage}.jsonl"

    @property
    def log(self) -> Path:
        """Standard output and error of the process that ran it."""
        return self.path / "run.log"

    def evaluation(self, suite: str) -> Path:
        return self.path / "evaluations" / f"{suite}.json"

    def report(self, extension: str) -> Path:
        """`reports/eval_{run_id}.{json,csv,html}` of the experiment."""
        return self.experiment / "reports" / f"eval_{self.run_id}.{extension}"


class Document(BaseModel):
    """Base of all stored documents: frozen, unknown keys refused, no NaN in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(Document):
    """One number with what it needs to be read: unit, direction, interval, applicability.

    `value` is None where the metric could not be computed (missing) or, with
    `applicable=False`, where the equation declares nothing to measure; `reason` says why.
    `low` and `high` bound the 95 % bootstrap interval over groups.
    """

    value: float | None
    unit: str = "1"
    better: Better = "lower"
    low: float | None = None
    high: float | None = None
    applicable: bool = True
    reason: str = ""


class Protocol(Document):
    """What was asked of a predictor. Rows of different protocols are never compared."""

    name: str
    dataset_identity: str
    split: str
    first_frame: int
    time_stride: int
    steps: int
    points: int
    num_groups: int
    groups_hash: str

    @property
    def hash(self) -> str:
        return content_hash(self.model_dump(mode="json"))


class Predictor(Document):
    """Who answered: weights, guards, ensemble, test-time compute."""

    model_hash: str
    weights: Literal["raw", "ema"]
    guards: tuple[str, ...]
    members: int = 1
    #: whose figures the headline's are: one rollout without noise, or the members' point forecast
    kind: Literal["deterministic", "ensemble_mean"] = "deterministic"
    #: of the members' noise
    noise_seed: int | None = None
    test_time_compute: bool = False
    solver_in_the_loop: bool = False
    #: of every setting of test-time compute
    search_hash: str | None = None

    @property
    def hash(self) -> str:
        """Without what says nothing, so that a plain predictor keeps its hash."""
        unsaid = {"search_hash"} if self.search_hash is None else set()
        return content_hash(self.model_dump(mode="json", exclude=unsaid))


class Draws(Document):
    """A metric in bootstrap resamples of its first `groups` groups (`evaluation/paired_draws.py`)."""

    groups: int
    values: tuple[float, ...]


class RegimeResult(Document):
    """Metrics of one parameter regime (one viscosity, one speed).

    `per_group` holds, for metrics that gates compare in pairs, one value per group in
    the order of `groups`. `curves` hold one value per predicted frame: of an ensemble also the errors of
    its point forecast, its members' mean and the operator on the same initial conditions (`nrmse_point`,
    `nrmse_ensemble_mean`, `nrmse_operator`) and the point's paired gain (`point_gain`); and one per level
    (`coverage*`), rank (`rank_histogram*`) and bin of spread (`spread_skill_binned*`). `*_low`, `*_high`: ends
    of the 95 % interval. `draws`: of what gates compare in pairs and is no mean over groups (ece), values in
    the same resamples for every record.
    """

    parameters: dict[str, float]
    metrics: dict[str, Metric]
    groups: tuple[str, ...]
    per_group: dict[str, tuple[float, ...]]
    curves: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)
    draws: dict[str, Draws] = Field(default_factory=dict)


class EvaluationResult(Document):
    protocol: Protocol
    predictor: Predictor
    regimes: dict[str, RegimeResult]
    #: regime -> predictor name (persistence, spatial_mean, linearised, classical_64, ...)
    #: -> metric name -> Metric
    references: dict[str, dict[str, dict[str, Metric]]] = Field(default_factory=dict)


class EvaluationRecord(Document):
    schema_version: Literal[1] = 1
    suite: str
    run_id: str
    result: EvaluationResult
    observation: dict[str, Any] = Field(default_factory=dict)

    @property
    def code_version(self) -> str | None:
        """Of the code that asked and measured; None of a record from before it was said."""
        found = self.observation.get("code_version")
        return None if found is None else str(found)


class NoiseChoice(Document):
    """What becomes of a corrector's noise (`model/corrector.py`).

    at_edge: numbers whose best value was the last one tried on its side, so that a better may lie beyond.
    """

    carried: float
    persistence: float
    temperature: float
    at_edge: tuple[str, ...] = ()


class StochasticResult(Document):
    """What the stochastic stages are worth on validation, and what of them answers (`sampler_choice`).

    crps: of `operator`, `dressed_operator` (with its best constant width), `teacher`, `student` and `moments`
    (the learned Gaussian without its flow), relative to each frame's rms, on the same `groups` initial
    conditions, members, seed and steps. judged_on: whether the noise was chosen, for both
    samplers alike, on other initial conditions or on the same. gate: whether the student keeps the
    teacher's gain (None: of a record from before it was said). teacher_gain: share
    of the dressed operator's CRPS (of the bare one's in records without `dressed_operator`); student_share:
    of that gain; flow_gain: share of the moments' CRPS; flow_share: the student's of that; paired intervals.
    weights: stage -> which of its weights were kept. calibration: regime -> what leaving groups out
    of the fit chose. uncalibrated: why nothing was fitted.
    """

    sampler: Literal["teacher", "student"]
    decision: str
    crps: dict[str, Metric]
    teacher_gain: Metric
    student_share: Metric | None
    #: None: of a record from before they were asked; the share also without a student
    flow_gain: Metric | None = None
    flow_share: Metric | None = None
    noise: dict[str, NoiseChoice]
    weights: dict[str, Literal["raw", "ema"]]
    groups: int
    members: int
    #: None: to the end of the trajectory
    steps: int | None
    calibration: dict[str, str] = Field(default_factory=dict)
    uncalibrated: str = ""
    judged_on: Literal["other", "same"] = "same"
    gate: Literal["pass", "fail", "not evaluable", "not applicable"] | None = None


class TrainingResult(Document):
    config_name: str
    config_hash: str
    effective_config: dict[str, Any]
    data_identity: str
    code_version: str
    seed: int
    #: of what makes the headline's nrmse
    params: int
    #: of what sampling members adds (within `params` where the ensemble's mean is the headline)
    params_corrector: int = 0
    optimiser_steps: int
    #: of all stages, calibration included
    training_flops: float
    #: of the stages that make the headline's nrmse (None: a record from before they were told apart)
    headline_flops: float | None = None
    model_hash: str
    weights_kept: Literal["raw", "ema"]
    validation: dict[str, float | None]
    stages: tuple[str, ...]
    #: of a run that trained a corrector
    stochastic: StochasticResult | None = None

    @property
    def compared_flops(self) -> float:
        """What a gain in nrmse was bought with."""
        return self.training_flops if self.headline_flops is None else self.headline_flops


class TrainingRecord(Document):
    result: TrainingResult
    observation: dict[str, Any] = Field(default_factory=dict)

    @property
    def peak_memory_gib(self) -> float | None:
        """Most memory that it held: on the accelerator where it trained on one, else in its process; None: not told."""
        seen = self.observation
        on_device = seen.get("peak_device_memory_gib")
        if on_device is None and not str(seen.get("device", "cpu")).startswith("cpu"):
            return None
        found = seen.get("peak_memory_gib") if on_device is None else on_device
        return None if found is None else float(found)


class Origin(Document):
    """What is needed, beside the result, to make the run again elsewhere; changes no result itself.

    `specification`: of a generated data set, the whole of it. `commit`: of the checkout the code came
    from, with `-dirty` where files were changed; None outside a checkout. `packages`: versions of what
    computes. `archive`: SHA-256 of the code archive made of that checkout (package, configs, plans, pins;
    what a rented instance unpacks has the same). `lock`: SHA-256 of the pinned dependencies.
    """

    specification: dict[str, Any] | None = None
    commit: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    archive: str | None = None
    lock: str | None = None


class RunRecord(Document):
    """What a finished (or failed) run says: `summary.json`. Version 2 brought `origin`, 3 its archive and lock."""

    schema_version: Literal[1, 2, 3] = 3
    run_id: str
    status: Literal["running", "finished", "failed"]
    failure: str | None = None
    #: class of the exception it failed with, by which healing knows a cure
    failure_kind: str | None = None
    tags: tuple[str, ...] = ()
    origin: Origin | None = None
    training: TrainingRecord | None = None
    evaluations: dict[str, EvaluationRecord] = Field(default_factory=dict)

    def wall_clock_s(self) -> float | None:
        """Seconds of training plus evaluation, or None before training has finished."""
        if self.training is None:
            return None
        parts = [self.training.observation.get("wall_clock_s")]
        parts += [e.observation.get("wall_clock_s") for e in self.evaluations.values()]
        return math.fsum(p for p in parts if p is not None)


def content_hash(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value` (sorted keys, no blanks, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write the whole file or nothing: temporary file, fsync, rename, fsync of the folder.

    OSError (a full disk, a read-only folder) names the file; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, document: BaseModel | Mapping[str, Any]) -> None:
    value = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_document(path: Path, kind: type[T]) -> T:
    """Read and validate one stored document; damage is an `IntegrityError` naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} does not exist (expected a {kind.__name__})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise IntegrityError(
            f"{path} is not a valid {kind.__name__}: {where}: {first['msg']} "
            f"({error.error_count()} fault(s)); the file is damaged or of another version"
        ) from error
