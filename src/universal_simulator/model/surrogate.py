"""The composed model in physical units: normalise, encode, advance, decode; save and load.

A `Surrogate` is one file: weights, architecture, canonical frame, normalisation, equation,
grid, step and data identity under one hash. Loading needs no configuration.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from universal_simulator.configuration.schema import CorrectorOptions
from universal_simulator.errors import IntegrityError, UserError
from universal_simulator.model.calibration import Calibration, CalibrationEntry
from universal_simulator.model.canonical import CanonicalFrame, FrameState
from universal_simulator.model.combination import Combination, CombinationEntry
from universal_simulator.model.conditioning import ConditionEmbedding
from universal_simulator.model.contract import Conditions, GridStepper, Problem, Simulator
from universal_simulator.model.corrector import Corrector
from universal_simulator.model.reward import LearnedReward, RewardEntry
from universal_simulator.model.trial import try_member
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import Equation, equation_named
from universal_simulator.run_record import write_atomically

Sampler = Literal["teacher", "student", "moments"]
FORMAT = "usim-model-1"
#: what only test-time compute reads: no part of the plan's `.pt` files
SEARCH_TENSORS = ("reward.", "combination.")
#: entries that came after the first files of this format: written and hashed only where they say
#: something, so that a file without them keeps its bytes and its hash
LATER_ENTRIES = ("calibration", "corrector", "sampler", "reward", "combination", "member_representations")


class Architecture(BaseModel):
    """Everything but the weights; stored with them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    import_path: str
    options: dict[str, Any]
    canonical_frame: tuple[str, ...]
    #: steps between two encodings of a rollout; None: the first frame alone is encoded
    reencode_every: int | None
    equation: str
    field_names: tuple[str, ...]
    parameter_names: tuple[str, ...]
    lengths: tuple[float, ...]
    points: tuple[int, ...]
    origin: tuple[float, ...]
    dt_s: float
    #: sampling interval of the rollout in frames of the data it was trained on
    time_stride: int
    data_identity: str
    #: smallest and largest training value of each parameter
    parameter_range: tuple[tuple[float, float], ...]
    weights: str = "ema"
    #: beginnings of the hashes of the initial conditions it was trained and validated on
    seen_groups: tuple[str, ...] = ()
    #: on what its ensembles were calibrated, where they were
    calibration: CalibrationEntry | None = None
    #: the stochastic corrector, where its stage was trained
    corrector: CorrectorOptions | None = None
    #: what corrects a rollout
    sampler: Sampler | None = None
    #: on what the learned reward of test-time compute was trained, where it was
    reward: RewardEntry | None = None
    #: on what the learned combination of test-time compute was fitted, where it was
    combination: CombinationEntry | None = None
    #: members are rolled out each in a symmetric representation of its own
    member_representations: bool = False

    def canonical_json(self) -> str:
        """What is stored and hashed."""
        fields = type(self).model_fields
        unsaid = {name for name in LATER_ENTRIES if getattr(self, name) == fields[name].default}
        return self.model_dump_json(exclude=unsaid)


class Surrogate(nn.Module):
    """A member of the model contract between physical fields and physical fields."""

    offset: Tensor
    scale: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.equation = _equation(architecture)
        self.grid = Grid(architecture.lengths, architecture.points, architecture.origin)
        self.frame = CanonicalFrame(architecture.canonical_frame, self.equation, self.grid)
        if architecture.member_representations:
            self.equation.require_representations("model.member_representations")
        problem = Problem(
            num_fields=len(architecture.field_names),
            num_parameters=len(architecture.parameter_names),
            points=architecture.points[0],
            domain_length=architecture.lengths[0],
        )
        self.member = build_member(architecture.import_path, problem, architecture.options)
        self.register_buffer("offset", torch.zeros(problem.num_fields))
        self.register_buffer("scale", torch.ones(problem.num_fields))
        self.corrector: Corrector | None = None
        if architecture.corrector is not None:
            self.add_corrector(architecture.corrector)
            if architecture.sampler == "student":
                self.add_student()
        self.reward: LearnedReward | None = None
        if architecture.reward is not None:
            self.add_reward(architecture.reward)
        self.combination: Combination | None = None
        if architecture.combination is not None:
            self.add_combination(architecture.combination)
        if architecture.calibration is not None:
            rows = (len(architecture.calibration.regimes), architecture.calibration.steps)
            self._hold_calibration(torch.ones(rows).double(), torch.zeros(*rows, problem.num_fields).double())

    @property
    def calibration(self) -> Calibration | None:
        """What calibration data taught about its ensembles; None before `calibrate`."""
        entry = self.architecture.calibration
        if entry is None:
            return None
        return Calibration(entry, self.get_buffer("calibration_scale"), self.get_buffer("calibration_width"))

    def calibrate(self, calibration: Calibration) -> None:
        """Keep it with the weights it was fitted for: saved, hashed and loaded with them."""
        if calibration.width.shape[2] != len(self.architecture.field_names):
            raise ValueError(
                f"the calibration is of {calibration.width.shape[2]} fields, the model has "
                f"{len(self.architecture.field_names)}"
            )
        self.architecture = self.architecture.model_copy(update={"calibration": calibration.entry})
        self._hold_calibration(calibration.scale, calibration.width)

    def _hold_calibration(self, scale: Tensor, width: Tensor) -> None:
        self.register_buffer("calibration_scale", scale.double().to(self.offset.device))
        self.register_buffer("calibration_width", width.double().to(self.offset.device))

    def require_segments(self, asker: str = "a corrector") -> tuple[int, int, int]:
        """(N, D, K): latent tokens, numbers per token, steps between two encodings; or a UserError."""
        shape, segment = self.member.token_shape(), self.architecture.reencode_every
        if shape is None or segment is None:
            raise UserError(
                f"{asker} needs a member that carries latent tokens and model.reencode_every, "
                f"the length of the segments it acts on; {self.architecture.import_path} "
                f"has token shape {shape}, model.reencode_every is {segment}"
            )
        return (*shape, segment)

    def add_corrector(self, options: CorrectorOptions) -> Corrector:
        """Give the model an untrained corrector; its member must carry latent tokens."""
        tokens, latent_dim, segment = self.require_segments()
        self.corrector = Corrector(
            options,
            num_parameters=len(self.architecture.parameter_names),
            tokens=tokens,
            latent_dim=latent_dim,
            segment=segment,
        ).to(self.offset.device)
        self.architecture = self.architecture.model_copy(update={"corrector": options, "sampler": "teacher"})
        return self.corrector

    def add_student(self) -> None:
        if self.corrector is None:
            raise UserError("a student needs a corrector to learn from: train diff_residual first")
        self.corrector.add_student()
        self.architecture = self.architecture.model_copy(update={"sampler": "student"})

    def use_sampler(self, sampler: Sampler) -> None:
        """What corrects rollouts from now on; "moments": location and scale with plain noise, no flow at all."""
        if self.corrector is None or (sampler == "student" and self.corrector.student is None):
            raise UserError(f"this model has no {sampler} to correct its rollouts: train its stage first")
        self.architecture = self.architecture.model_copy(update={"sampler": sampler})

    def represent_members(self, represented: bool) -> None:
        """Roll out members each in a representation of its own from now on, or none. What the other kind of
        members was calibrated for is forgotten. ConfigurationError where the equation declares no symmetry."""
        if represented == self.architecture.member_representations:
            return
        if represented:
            self.equation.require_representations("model.member_representations")
        if self.architecture.calibration is not None:
            del self.calibration_scale, self.calibration_width
        told = {"member_representations": represented, "calibration": None}
        self.architecture = self.architecture.model_copy(update=told)

    @property
    def cells_per_token(self) -> int:
        """Cells of the grid under one latent token; the whole grid for a member without tokens."""
        shape = self.member.token_shape()
        return self.grid.points[0] // (shape[0] if shape else 1)

    def keep_teacher(self) -> None:
        """The teacher corrects rollouts; a student that was trained is dropped."""
        self.use_sampler("teacher")
        assert self.corrector is not None, "use_sampler refuses a model without one"
        self.corrector.student = None

    def add_reward(self, entry: RewardEntry | None = None) -> LearnedReward:
        """Give the model an untrained learned reward; the entry is what says that it was trained."""
        tokens, latent_dim, _ = self.require_segments("the learned reward of test-time compute")
        self.reward = LearnedReward(
            num_parameters=len(self.architecture.parameter_names), tokens=tokens, latent_dim=latent_dim
        ).to(self.offset.device)
        self.architecture = self.architecture.model_copy(update={"reward": entry})
        return self.reward

    def add_combination(self, entry: CombinationEntry) -> Combination:
        """Give the model a combination that answers with the mean until it is fitted."""
        self.combination = Combination(entry).to(self.offset.device)
        self.architecture = self.architecture.model_copy(update={"combination": entry})
        return self.combination

    def forget_combination(self) -> None:
        self.combination = None
        self.architecture = self.architecture.model_copy(update={"combination": None})

    def num_parameters(self) -> int:
        """Of what a stochastic rollout uses: the member, and its corrector without the unused sampler."""
        return self.deterministic_parameters() + self.corrector_parameters()

    def deterministic_parameters(self) -> int:
        """Of what the operator's own rollout uses: the member."""
        return sum(parameter.numel() for parameter in self.member.parameters())

    def corrector_parameters(self) -> int:
        """Of what sampling adds to it; 0 without a corrector."""
        if self.corrector is None:
            return 0
        total = sum(parameter.numel() for parameter in self.corrector.parameters())
        if self.corrector.student is not None:
            total -= sum(parameter.numel() for parameter in self.corrector.teacher.parameters())
        return total

    def normalise(self, fields: Tensor) -> Tensor:
        """Canonical fields (..., C, X) -> the member's units."""
        return (fields - self.offset[:, None]) / self.scale[:, None]

    def denormalise(self, fields: Tensor) -> Tensor:
        return fields * self.scale[:, None] + self.offset[:, None]

    @torch.no_grad()
    def fit_normalisation(self, canonical: Tensor, conditions: Conditions) -> None:
        """Statistics of training fields (B, T, C, X) and conditions, in the canonical frame.

        Conditions reach every `ConditionEmbedding`, wherever it sits in a member, and nothing else.
        """
        self.offset.copy_(canonical.mean(dim=(0, 1, 3)))
        centred = canonical - self.offset[:, None]
        self.scale.copy_(centred.square().mean(dim=(0, 1, 3)).sqrt().clamp_min(1e-12))
        for module in self.modules():
            if isinstance(module, ConditionEmbedding):
                module.fit(conditions)

    def frame_of(self, initial: Tensor) -> FrameState:
        return self.frame.of(initial)

    def conditions(self, state: FrameState, parameters: Tensor, dt_s: float | None = None) -> Conditions:
        """Conditions of one step (default: the step trained on) as they read in the frame."""
        return self.frame.conditions(state, parameters, dt_s or self.architecture.dt_s)


def build_member(import_path: str, problem: Problem, options: Mapping[str, Any]) -> Simulator:
    """Instantiate `package.module:Class` as `Class(problem, **options)` and try it once."""
    module_name, _, class_name = import_path.partition(":")
    if not module_name or not class_name:
        raise UserError(f"model.import_path {import_path!r}: expected 'package.module:Class'")
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"model.import_path {import_path!r} cannot be imported: {error}; "
            "is the module on PYTHONPATH and the class name right?"
        ) from error
    try:
        member = kind(problem, **options)
    except (TypeError, ValueError, ValidationError) as error:
        raise UserError(f"model.options do not fit {import_path}: {error}") from error
    if not isinstance(member, nn.Module):
        raise UserError(
            f"{import_path} is neither a Simulator nor a torch.nn.Module, but {type(member).__name__}"
        )
    simulator = member if isinstance(member, Simulator) else GridStepper(member, problem)
    try_member(simulator, problem, import_path)
    return simulator


def model_hash(architecture: Architecture, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the architecture and every tensor (name, type, shape, bytes)."""
    digest = hashlib.sha256(architecture.canonical_json().encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_of(surrogate: Surrogate) -> str:
    return model_hash(surrogate.architecture, surrogate.state_dict())


def save_surrogate(
    surrogate: Surrogate,
    path: Path,
    *,
    plain_checkpoint: Path | None = None,
    corrector_checkpoint: Path | None = None,
) -> str:
    """Write the model file; returns its hash.

    Beside it, where asked, the plan's `.pt` files of plain tensors: the deterministic model and
    its corrector (with student).
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in surrogate.state_dict().items()}
    digest = model_hash(surrogate.architecture, tensors)
    metadata = {
        "format": FORMAT,
        "hash": digest,
        "architecture": surrogate.architecture.canonical_json(),
    }
    write_atomically(path, save_safetensors(tensors, metadata))
    for checkpoint, corrects in ((plain_checkpoint, False), (corrector_checkpoint, True)):
        if checkpoint is not None:
            part = {
                k: v
                for k, v in tensors.items()
                if k.startswith("corrector.") == corrects and not k.startswith(SEARCH_TENSORS)
            }
            buffer = io.BytesIO()
            torch.save({"hash": digest, "state": part}, buffer)
            write_atomically(checkpoint, buffer.getvalue())
    return digest


def load_surrogate(path: Path) -> Surrogate:
    """Rebuild a model from its file alone; a changed byte is an `IntegrityError`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; give a model.safetensors, or the folder (DIR/artifacts/runs/RUN_ID) of a "
            "run whose training has ended"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); see to its permissions") from error
    architecture, digest = _read_header(path, data)
    try:
        tensors = load_safetensors(data)
    except SafetensorError as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error
    if model_hash(architecture, tensors) != digest:
        raise IntegrityError(
            f"{path}: weights or architecture do not match the stored hash; the file was changed "
            "after it was written, take it again from the run that made it"
        )
    surrogate = Surrogate(architecture)
    try:
        surrogate.load_state_dict(tensors)
    except RuntimeError as error:
        raise IntegrityError(
            f"{path} does not fit {architecture.import_path} of this version: {error}"
        ) from error
    try:
        _ = surrogate.calibration
    except ValueError as error:
        raise IntegrityError(f"{path}: its calibration cannot be: {error}") from error
    return surrogate.eval()


def _read_header(path: Path, data: bytes) -> tuple[Architecture, str]:
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or not 2 <= length <= len(data) - 8:
            raise ValueError("no header")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']!r}, this version reads {FORMAT!r}")
        return Architecture.model_validate_json(metadata["architecture"]), str(metadata["hash"])
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{path} is not a model of this project: {error}; expected a run's model.safetensors"
        ) from error


def _equation(architecture: Architecture) -> Equation:
    return equation_named(
        architecture.equation,
        field_names=architecture.field_names,
        parameter_names=architecture.parameter_names,
    )
