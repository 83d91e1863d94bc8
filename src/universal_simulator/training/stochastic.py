"""Losses of the stochastic stages: the corrector (`diff_residual`) and its student.

Both see the segments that a rollout will meet: the operator, held still, rolls K steps from the
encoded first frame of a window, and the residual of every one of its steps is a target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.inference.rollout import repeat_conditions
from universal_simulator.model.contract import Conditions
from universal_simulator.model.corrector import Corrector
from universal_simulator.model.flow import flow_matching_loss, jump_field, student_loss, trajectory
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.training.losses import LossTerms, TrainingBatch

#: a latent number or residual is measured in units of at least this
SMALLEST_UNIT = 1e-6


@dataclass(frozen=True)
class Residuals:
    """Samples (S, ...) for the corrector: z_0, z_k, k, conditions and r_k = y_k - z_k."""

    start: Tensor
    states: Tensor
    steps: Tensor
    conditions: Conditions
    residual: Tensor


@dataclass(frozen=True)
class Segments:
    """start z_0 (B, N, D); states z_1..z_K and targets y_1..y_K (B, K, N, D)."""

    start: Tensor
    states: Tensor
    targets: Tensor
    conditions: Conditions

    def drawn(self, count: int) -> Residuals:
        """`count` of the K steps of every window, without replacement; all of them where K is fewer."""
        size, steps = self.states.shape[:2]
        count, device = min(count, steps), self.states.device
        chosen = torch.rand(size, steps, device=device).argsort(dim=1)[:, :count]
        rows = torch.arange(size, device=device)[:, None]
        states = self.states[rows, chosen].flatten(0, 1)
        return Residuals(
            start=self.start.repeat_interleave(count, 0),
            states=states,
            steps=(chosen + 1).flatten(),
            conditions=repeat_conditions(self.conditions, count),
            residual=self.targets[rows, chosen].flatten(0, 1) - states,
        )


@torch.no_grad()
def segments(surrogate: Surrogate, batch: TrainingBatch) -> Segments:
    """The operator's own rollouts over windows of K + 1 frames, with the latents of the truth."""
    member = surrogate.member.eval()
    size, frames = batch.truth.shape[:2]
    normalised = surrogate.normalise(batch.truth)
    repeated = repeat_conditions(batch.conditions, frames)
    targets = member.encode(normalised.flatten(0, 1), repeated).unflatten(0, (size, frames))
    states = [targets[:, 0]]
    for _ in range(frames - 1):
        states.append(member.advance(states[-1], batch.conditions))
    return Segments(targets[:, 0], torch.stack(states[1:], dim=1), targets[:, 1:], batch.conditions)


@torch.no_grad()
def fit_units(corrector: Corrector, measured: Segments) -> None:
    """The residual's root mean square per step and latent number, and that of the latents."""
    residual = (measured.targets - measured.states).square().mean(dim=(0, 2)).sqrt()
    corrector.residual_scale.copy_(residual.clamp_min(SMALLEST_UNIT))
    latent = measured.targets.square().mean(dim=(0, 1, 2)).sqrt()
    corrector.latent_scale.copy_(latent.clamp_min(SMALLEST_UNIT))
    corrector.condition.fit(measured.conditions)


def corrector_loss(surrogate: Surrogate, batch: TrainingBatch, *, residuals: int) -> LossTerms:
    """Gaussian likelihood of location and scale, and flow matching of what they leave.

    L = mean( w^2 / 2 + log sigma ) + mean |v(x_s, s) - (w - e)|^2,   w = (r / c - mu) / sigma

    over `residuals` steps of every window. w is held fixed in the second term: the flow must not buy an easy target with a wide sigma.
    """
    corrector = _corrector(surrogate)
    found = segments(surrogate, batch).drawn(residuals)
    context = corrector.context(found.start, found.states, found.steps, found.conditions)
    whitened = context.whiten(found.residual)
    likelihood = (0.5 * whitened.square() + context.log_scale).mean()
    given, data = context.detached(), whitened.detach()
    noise, s = torch.randn_like(data), torch.rand(len(data), device=data.device)
    flow = flow_matching_loss(
        lambda x, at: corrector.velocity(corrector.teacher, given, x, at), data, noise, s
    ).mean()
    return LossTerms(likelihood + flow, {"likelihood": likelihood, "flow": flow})


def consistency_loss(surrogate: Surrogate, batch: TrainingBatch, *, taus: int, residuals: int) -> LossTerms:
    """The student's jumps against the ends of the teacher's own trajectories of `taus` points."""
    corrector = _corrector(surrogate)
    student = corrector.student
    if student is None:
        raise ValueError("consistency_loss needs a student: call Surrogate.add_student first")
    found = segments(surrogate, batch).drawn(residuals)
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
