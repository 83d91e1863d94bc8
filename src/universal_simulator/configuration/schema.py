"""The schema of a run's configuration: every key, its type, its range, what reads it.

All models are frozen and refuse unknown keys. Values are the *effective* ones: the
loader has applied `extends`, the profile's rule and the overrides before they get here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

#: Sections of stages that the plan names and a config with a time cannot run (the steady prior
#: has a document of its own, `configuration/steady.py`). They are validated and shown, never read,
#: and do not enter the effective hash.
PENDING_SECTIONS = ("steady_prior",)
BUILT_STAGES = ("codec", "operator", "diff_residual", "consistency_distill")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's true would otherwise count as 1."""
        items = value if isinstance(value, list | tuple) else [value]
        wants_truth = cls.model_fields[str(info.field_name)].annotation is bool
        if not wants_truth and any(isinstance(item, bool) for item in items):
            raise ValueError("true and false are not allowed here")
        return value


class DataConfig(Section):
    #: name of a dataset in `configs/data`, generated where it is missing, or a data file; or
    dataset: str | None = None
    #: path of a data file (PDEBench's layout, or ours)
    file: str | None = None
    #: frames per model step
    time_stride: Count = 2
    #: train on at most this many groups of the training split (None: all)
    train_groups: Count | None = None
    #: what fits below this is held in memory, the rest streams from the file
    resident_gib: Positive = 4.0


class OperatorOptions(Section):
    hidden: Count = 64
    #: blocks on the way down (all tokens), at the bottom (half of them), on the way up
    depths: tuple[Count, Count, Count] = (1, 1, 1)
    #: channels per normalisation group of queries and keys; divides `hidden`
    group_size: Count = 8
    heads: Count = 4
    #: probability of skipping a block in training, rising linearly to this with depth
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.0


class DecoderOptions(Section):
    hidden: Count = 64
    mlp_hidden: Count = 128
    layers: Count = 3
    heads: Count = 4
    #: of the decoder's local coordinate, in cycles per half-width of a token's support
    frequencies: tuple[Positive, ...] = (1.0, 2.0, 4.0, 8.0)


class LatentSurrogateOptions(Section):
    latent_dim: Count = 32
    latent_tokens: Annotated[int, Field(ge=4)] = 16
    operator: OperatorOptions = OperatorOptions()
    decoder: DecoderOptions = DecoderOptions()


class FNOOptions(Section):
    width: Count = 32
    modes: Count = 24
    layers: Count = 4


class TokenNetworkOptions(Section):
    """Networks of a conditional generator of latents (`model/latent_generator.py`)."""

    hidden: Count = 64
    #: blocks of each of its networks
    layers: Count = 2
    heads: Count = 4
    group_size: Count = 8
    #: Heun steps of the teacher, two evaluations each
    teacher_steps: Count = 3


class CorrectorOptions(TokenNetworkOptions):
    """Networks of the stochastic corrector (`model/corrector.py`)."""

    #: jumps of the student, one evaluation each
    student_evaluations: Count = 1


class ModelConfig(Section):
    """`import_path` names any class that keeps the model contract (`model/contract.py`)."""

    import_path: str = "universal_simulator.model.latent_surrogate:LatentSurrogate"
    #: exact symmetries of the equation taken out before the model sees the field
    canonical_frame: tuple[Literal["galilean", "amplitude_time"], ...] = ("galilean", "amplitude_time")
    #: decode and encode anew, in the field's own canonical frame, after this many steps of a
    #: rollout (None: the first frame alone is encoded)
    reencode_every: Count | None = None
    #: each member of an ensemble is rolled out in an exact symmetric representation of its own, drawn from its
    #: seed: a shift below a token's width, a reflection, as the equation declares them (refused where it
    #: declares neither); the members' mean then averages what the model errs by where the field stands
    member_representations: bool = False
    #: networks of the stochastic stages
    corrector: CorrectorOptions = CorrectorOptions()
    #: constructor options: checked against the schema of the built-in members, or
    #: against the constructor's signature of a user's own class
    options: dict[str, Any] = Field(default_factory=dict)


class Stage(Section):
    """The optimiser and schedule of one training stage (effective values)."""

    #: optimiser steps; the profile's rule makes them from the plan's epochs
    steps: Count
    learning_rate: Positive
    warmup_ratio: Fraction = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    #: where the cosine ends
    eta_min: NonNegative = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: NonNegative = 0.01
    grad_clip: Positive = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    #: early stop after this many steps without a better validation score
    patience_steps: Count


class CodecStage(Stage):
    """Encoder and decoder alone, on single frames; the operator stage then holds them still."""

    #: frames per optimiser step: without a rollout they are cheap
    batch_size: Count = 48


class CorrectorStage(Stage):
    """`diff_residual`: the stochastic corrector of the operator's residual."""

    #: steps of a segment that a window contributes, drawn anew each time
    residuals_per_window: Count = 4
    #: windows whose segments are rolled out once and kept in the latents (0: anew at every step)
    latent_cache_windows: Annotated[int, Field(ge=0)] = 1024
    latent_cache_dtype: Literal["float32", "bfloat16"] = "float32"


class StudentStage(CorrectorStage):
    """`consistency_distill`: the student on the trajectories of its teacher."""

    batch_size: Count = 6
    accumulation: Count = 2
    #: points of a teacher's trajectory: Heun steps from noise to data
    taus: Count = 5


class LossConfig(Section):
    """Weights of the terms of the operator loss; rollout steps weigh 1 together."""

    lambda_reconstruction: NonNegative = 1.0
    lambda_latent: NonNegative = 1.0
    lambda_spectral: NonNegative = 0.05


class EnsembleValidation(Section):
    """How the stochastic stages are judged: CRPS of ensembles, which cost what rollouts cost."""

    validations: Count = 4
    members: Annotated[int, Field(ge=2)] = 8
    #: groups of the validation split
    groups: Count = 16
    #: rollout steps (None: to the end of the trajectory)
    steps: Count | None = None
    #: a teacher, several times as dear, gets a noise of its own or that of its student
    teacher_noise: Literal["searched", "of_student"] = "searched"


class TrainingConfig(Section):
    #: in this order; without `codec` the operator stage trains encoder and decoder as well
    stages: tuple[
        Literal["codec", "operator", "diff_residual", "consistency_distill", "steady_prior"], ...
    ] = ("codec", "operator")
    #: samples per micro-batch; the optimiser sees batch_size * accumulation
    batch_size: Count
    accumulation: Count = 1
    #: samples carried through the model at a time (None: the whole micro-batch); parts are weighted
    #: by their samples, so the gradient is the same but for round-off
    micro_batch_size: Count | None = None
    #: rollout lengths trained on, one after another
    rollout_curriculum: tuple[Count, ...] = (1, 4, 8, 16)
    #: share of the stage spent at each length; same number of entries, sums to 1
    curriculum_shares: tuple[Positive, ...] = (0.25, 0.25, 0.25, 0.25)
    #: exact symmetries of the equation by which training windows are varied
    augmentation: tuple[Literal["shift", "reflection"], ...] = ()
    #: share of training windows that start at the initial condition
    windows_from_start: Fraction = 0.4
    validations: Count = 8
    validation_groups: Count = 32
    ensemble_validation: EnsembleValidation = EnsembleValidation()
    #: a loss that stays above this many times the running median stops the run
    divergence_factor: Annotated[float, Field(gt=1)] = 100.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    loss: LossConfig = LossConfig()
    codec: CodecStage
    operator: Stage
    diff_residual: CorrectorStage
    consistency_distill: StudentStage


class GuardsConfig(Section):
    #: project each decoded frame onto the declared conserved integrals
    mass_projection: bool = True
    #: clip where the equation declares non-negative fields
    positivity: bool = True
    #: shrink fluctuations that outlive the declared diffusion (the Poincare inequality)
    energy_bound: bool = True


class EvaluationConfig(Section):
    #: groups of the validation split that small-eval looks at (a fixed subset)
    small_groups: Count = 32
    #: groups of the selection split that full-eval looks at (None: all)
    full_groups: Count | None = None
    first_frame: Annotated[int, Field(ge=0)] = 0
    #: rollout steps (None: to the end of the trajectory)
    steps: Count | None = None
    batch_size: Count = 64
    bootstrap_samples: Count = 2000
    #: members of a stochastic model's ensembles, in full-eval and in the cheap small-eval (1: none,
    #: the operator goes alone)
    members: Count = 32
    small_members: Count = 8
    #: initial conditions that ensembles are asked for (None: all; needs the deterministic headline)
    ensemble_groups: Count | None = None
    #: initial conditions of its half of the calibration split that ensembles are recalibrated on (None: all)
    calibration_groups: Count | None = None
    #: whose nrmse is the headline of a stochastic model, its ensemble's point forecast or its operator; the
    #: other's stands beside
    headline: Literal["ensemble_mean", "deterministic"] = "ensemble_mean"
    #: of the members' noise, with each trajectory's own initial condition
    noise_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    #: resolutions of the classical solver beside every number
    classical_points: tuple[Count, ...] = (64, 128, 256)


class TrackingConfig(Section):
    """Under which names a mirror shows this run; read by `tracking.snapshot`, changes no result."""

    project: Annotated[str, Field(pattern=r"^[^/\\#?%:]{1,128}$")] = "universal-simulator"
    group: Annotated[str, Field(max_length=128)] = ""
    #: beside the run's own `tags`
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()


class SteadyPriorSection(Section):
    epochs: Annotated[int, Field(ge=0)] = 0


class RewardWeights(Section):
    mass: NonNegative = 1.2
    energy: NonNegative = 0.15
    negativity: NonNegative = 0.6


class TTCSection(Section):
    """Test-time compute (`inference/test_time_compute.py`); acts at the end of each segment.

    A regressed answer (combine) leaves some keys unread: `configuration/unread_settings.py` says which.
    """

    #: passes per segment: the first over all candidates, each further one about what was chosen
    steps: Count = 1
    #: per sample and pass, beside the partial trajectories and their mean
    candidates: Annotated[int, Field(ge=2)] = 8
    #: partial trajectories per sample, each rolled out in a representation of its own
    beam: Count = 3
    #: segments looked at by the cost: 1 is the candidate's own, more are rolled out for scoring alone
    horizon: Count = 1
    #: act where the plain rollout's predicted error exceeds this share of its 95th percentile in training
    residual_threshold: NonNegative = 0.35
    #: weight of physics beside the learned reward
    gamma: NonNegative = 1.0
    #: operator steps and corrector samples per sample and rollout, beyond the plain rollout
    max_evaluations: Annotated[int, Field(ge=0)] = 150
    #: shares of the corrector's residual that are candidates
    tau_range: tuple[Fraction, Fraction] = (0.15, 0.85)
    #: displacement of direction candidates in pass i: noise_schedule[i] / noise_std spreads of the beam
    noise_std: Positive = 0.015
    noise_schedule: tuple[NonNegative, ...] = (0.03, 0.015, 0.005)
    reward_weights: RewardWeights = RewardWeights()
    #: share of the chosen displacement by which the partial trajectories themselves are moved: 0 leaves
    #: them as they are (a reward that errs would drive them off, LOG.md 2026-11-25)
    guidance_lambda: NonNegative = 0.0
    #: the answer is the average weighted by cost^(-1/temperature), the candidate that costs least, or
    #: regressed: the mean moved along its directions by weights that were fitted to the state
    combine: Literal["average", "pick", "regress"] = "average"
    temperature: Positive = 0.5
    #: project the answer of each segment onto the declared conserved integrals before it goes on
    projection: bool = True
    #: optimiser steps of the learned reward (0: physics alone ranks)
    reward_steps: Annotated[int, Field(ge=0)] = 300
    #: solver in the loop: its residual as a cost, or one linearised residual step on the answer
    solver: Literal["off", "residual", "correction"] = "off"
    enabled: bool = False


class RunConfig(Section):
    name: str
    tags: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0)] = 0
    profile: str
    threads: Annotated[int, Field(ge=0)] = 0
    #: `auto`: the first CUDA device where there is one, else the CPU
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")] = "cpu"
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    guards: GuardsConfig = GuardsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    steady_prior: SteadyPriorSection = SteadyPriorSection()
    ttc: TTCSection = TTCSection()
