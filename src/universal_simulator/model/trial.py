"""One dry step of a member before anything is spent on it: shapes, types, finite values."""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.errors import UserError
from universal_simulator.model.contract import Conditions, Problem, Simulator

#: two samples, so that a member which mixes up the batch with another axis is seen
SAMPLES = 2
#: positions decoded, a number that is neither the samples nor the fields
POSITIONS = 5


def try_member(member: Simulator, problem: Problem, import_path: str) -> None:
    """Encode, advance and decode a smooth field of order one; UserError says which step fails and why.

    On the CPU, without gradients, in evaluation mode; the member's mode and the global random
    generator are left as they were.
    """
    phase = 2 * torch.pi * (torch.arange(problem.points) + 0.5) / problem.points
    shifts = torch.arange(SAMPLES * problem.num_fields).reshape(SAMPLES, problem.num_fields, 1)
    fields = torch.sin(phase + shifts)
    conditions = Conditions(torch.ones(SAMPLES, problem.num_parameters), torch.full((SAMPLES,), 0.01))
    positions = torch.linspace(0, problem.domain_length, POSITIONS, dtype=torch.float64)
    training = member.training
    member.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _steps(member, fields, conditions, positions, import_path)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"{import_path} fails on fields (B, C, X) = {tuple(fields.shape)} with "
            f"{problem.num_parameters} parameter(s): {type(error).__name__}: {error}; the contract is in "
            "model/contract.py"
        ) from error
    finally:
        member.train(training)


def _steps(
    member: Simulator, fields: Tensor, conditions: Conditions, positions: Tensor, import_path: str
) -> None:
    state = member.encode(fields, conditions)
    _require(import_path, "encode", state, (SAMPLES, *state.shape[1:]) if isinstance(state, Tensor) else ())
    after = member.advance(state, conditions)
    _require(import_path, "advance", after, tuple(state.shape))
    _require(import_path, "decode", member.decode(after, conditions), tuple(fields.shape))
    anywhere = member.decode(after, conditions, positions)
    _require(import_path, "decode at 5 positions", anywhere, (*fields.shape[:2], POSITIONS))


def _require(import_path: str, step: str, values: object, shape: tuple[int, ...]) -> None:
    """Floating-point values of this shape, all finite."""
    if not isinstance(values, Tensor):
        raise UserError(f"{import_path}: {step} answers {type(values).__name__}, expected a torch.Tensor")
    if tuple(values.shape) != shape or not values.is_floating_point():
        raise UserError(
            f"{import_path}: {step} answers {values.dtype} of shape {tuple(values.shape)}, expected "
            f"floating-point numbers of shape {shape}"
        )
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            f"{import_path}: {step} answers NaN or infinite values for a smooth field of order one; "
            "check its initial weights"
        )
