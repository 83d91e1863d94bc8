"""What test-time compute costs in floating-point operations, in the unit of one operator step.

Evaluations are not equal: a corrector sample is a network of its own, and a reward encodes every candidate
once more. One *operator step* is a plain rollout's step with its share of encoding and decoding,

    step = (encode + K advance + K decode) / K,      K steps between two encodings,

and everything else is priced in it by counting the operations of the real calls (matrix products,
convolutions, attention, as training counts them; Fourier transforms and the classical solver are not
counted: solver in the loop is compared by seconds).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.inference.candidates import IDENTITY
from universal_simulator.inference.counting import OperationCounter
from universal_simulator.inference.ensemble import trajectory_noise
from universal_simulator.inference.partial_trajectories import corrected_ends, roll
from universal_simulator.inference.rewards import Cost, CostFunction, Question
from universal_simulator.inference.rollout import rollout_fields
from universal_simulator.inference.solver_in_the_loop import ResidualCost
from universal_simulator.model.surrogate import Surrogate

#: a price is what one more trajectory costs: what a call computes once for all of them (a decoder's basis)
#: is left out
BATCHES = (2, 4)


@dataclass(frozen=True)
class Prices:
    """In operator steps, but for step_flops (floating-point operations of one operator step).

    member_step: a step of an ensemble's member. corrected_end: one sampled and decoded end of a segment.
    question, candidate: a reward asked about n candidates costs question + n candidate.
    """

    step_flops: float
    member_step: float
    corrected_end: float
    question: float
    candidate: float


def prices(surrogate: Surrogate, cost: CostFunction) -> Prices:
    """Counted on random fields; a cost that is not this project's own is not priced (0)."""
    steps, dt_s = surrogate.architecture.reencode_every or 1, surrogate.architecture.dt_s
    step = _counted(surrogate, lambda u, nu: rollout_fields(surrogate, u, nu, steps=steps)) / steps
    member = end = 0.0
    if surrogate.corrector is not None:

        def sampled(fields: Tensor, parameters: Tensor) -> Tensor:
            noise = trajectory_noise(surrogate, fields, steps, 1, seed=0)[:, 0]
            return rollout_fields(surrogate, fields, parameters, steps=steps, noise=noise)

        def corrected(fields: Tensor, parameters: Tensor) -> Tensor:
            noise = trajectory_noise(surrogate, fields, steps, 1, seed=0)[:, :, 0]
            rolled = roll(surrogate, fields[:, None], parameters, (IDENTITY,), steps, dt_s)
            return corrected_ends(surrogate, rolled, (IDENTITY,), noise, steps, dt_s)

        member = _counted(surrogate, sampled) / steps
        end = _counted(surrogate, corrected) - steps * step
    if isinstance(cost, ResidualCost):
        cost = cost.other
    question = candidate = 0.0
    if isinstance(cost, Cost):

        def asked(fields: Tensor, parameters: Tensor, count: int) -> Tensor:
            elapsed = fields.new_full((len(fields),), steps * dt_s)
            candidates = fields[:, None].repeat(1, count, 1, 1)
            return cost(Question(fields, candidates, parameters, elapsed, 0))

        one, two = (_counted(surrogate, functools.partial(asked, count=count)) for count in (1, 2))
        question, candidate = (2 * one - two) / step, (two - one) / step
    return Prices(step, member / step, end / step, question, candidate)


def evaluations_per_sample(surrogate: Surrogate) -> int:
    """Network evaluations of one corrector sample."""
    if surrogate.corrector is None:
        return 0
    options = surrogate.corrector.options
    counts = {"student": options.student_evaluations, "moments": 0}
    return counts.get(str(surrogate.architecture.sampler), 2 * options.teacher_steps)


def _counted(surrogate: Surrogate, call: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Operations of one more trajectory: fields (B, C, X) and parameters (B, P) -> anything."""
    totals = []
    for size in BATCHES:
        generator = torch.Generator().manual_seed(0)
        shape = (size, len(surrogate.architecture.field_names), surrogate.grid.points[0])
        fields = torch.randn(shape, generator=generator).to(surrogate.offset)
        low = fields.new_tensor([low for low, _ in surrogate.architecture.parameter_range])
        with torch.inference_mode(), OperationCounter() as counter:
            call(fields, low.repeat(size, 1))
        totals.append(counter.total)
    return (totals[1] - totals[0]) / (BATCHES[1] - BATCHES[0])
