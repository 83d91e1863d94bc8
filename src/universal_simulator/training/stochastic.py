"""Losses of the stochastic stages: the corrector (`diff_residual`) and its student.

Both see the segments that a rollout will meet (`training/segments.py`): the operator, held still, rolls
K steps from the encoded first frame of a window, and the residual of any of its steps is a target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.model.corrector import Corrector
from universal_simulator.model.flow import flow_matching_loss, jump_field, student_loss, trajectory
from universal_simulator.model.latent_generator import Context, LatentGenerator
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.training.losses import LossTerms
from universal_simulator.training.segments import Segments

#: a latent number or residual is measured in units of at least this
SMALLEST_UNIT = 1e-6


@torch.no_grad()
def fit_units(corrector: Corrector, measured: Segments) -> None:
    """The residual's root mean square per step and latent number, and that of the latents."""
    residual = measured.residual.square().mean(dim=(0, 2)).sqrt()
    corrector.residual_scale.copy_(residual.clamp_min(SMALLEST_UNIT))
    latent = measured.states.square().mean(dim=(0, 1, 2)).sqrt()
    corrector.latent_scale.copy_(latent.clamp_min(SMALLEST_UNIT))
    corrector.condition.fit(measured.conditions)


def corrector_loss(surrogate: Surrogate, batch: Segments, *, residuals: int) -> LossTerms:
    """`generator_loss` of the residuals of `residuals` steps of every window."""
    corrector = _corrector(surrogate)
    found = batch.drawn(residuals)
    context = corrector.context(found.start, found.states, found.steps, found.conditions)
    return generator_loss(corrector, context, found.residual)


def generator_loss(generator: LatentGenerator, context: Context, target: Tensor) -> LossTerms:
    """Gaussian likelihood of location and scale, and flow matching of what they leave.

    L = mean( w^2 / 2 + log sigma ) + mean |v(x_s, s) - (w - e)|^2,   w = (r / c - mu) / sigma

    of targets r (B, N, D). w is held fixed in the second term: the flow must not buy an easy target
    with a wide sigma.
    """
    whitened = context.whiten(target)
    likelihood = (0.5 * whitened.square() + context.log_scale).mean()
    given, data = context.detached(), whitened.detach()
    noise, s = torch.randn_like(data), torch.rand(len(data), device=data.device)
    flow = flow_matching_loss(
        lambda x, at: generator.velocity(generator.teacher, given, x, at), data, noise, s
    ).mean()
    return LossTerms(likelihood + flow, {"likelihood": likelihood, "flow": flow})


def consistency_loss(surrogate: Surrogate, batch: Segments, *, taus: int, residuals: int) -> LossTerms:
    """The student's jumps against the ends of the teacher's own trajectories of `taus` points."""
    corrector = _corrector(surrogate)
    student = corrector.student
    if student is None:
        raise ValueError("consistency_loss needs a student: call Surrogate.add_student first")
    found = batch.drawn(residuals)
    with torch.no_grad():
        context = corrector.context(found.start, found.states, found.steps, found.conditions)
        noise = torch.randn_like(context.location)
        path = trajectory(
            lambda x, s: corrector.velocity(corrector.teacher, context, x, s), noise, steps=taus
        )
    jumped = jump_field(lambda x, s: corrector.velocity(student, context, x, s))
    drawn = torch.randint(taus, (len(noise),), device=noise.device)
    loss = student_loss(jumped, path, drawn).mean()
    return LossTerms(loss, {"consistency": loss})


def _corrector(surrogate: Surrogate) -> Corrector:
    if surrogate.corrector is None:
        raise ValueError("this loss needs a corrector: call Surrogate.add_corrector first")
    return surrogate.corrector
