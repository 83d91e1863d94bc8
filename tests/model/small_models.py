"""The smallest models that tests are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.configuration.schema import CorrectorOptions
from universal_simulator.model.surrogate import Architecture, Surrogate

LATENT = "universal_simulator.model.latent_surrogate:LatentSurrogate"
CORRECTOR = CorrectorOptions(hidden=32, layers=1, heads=2, group_size=8, teacher_steps=3)


def architecture(
    import_path: str = LATENT,
    frame: tuple[str, ...] = (),
    every: int | None = None,
    *,
    points: int = 64,
    **options: object,
) -> Architecture:
    return Architecture(
        import_path=import_path,
        options=options,
        canonical_frame=frame,
        reencode_every=every,
        equation="burgers",
        field_names=("u",),
        parameter_names=("nu",),
        lengths=(1.0,),
        points=(points,),
        origin=(0.0,),
        dt_s=0.02,
        time_stride=2,
        data_identity="x",
        parameter_range=((0.01, 0.1),),
    )


def surrogate(*, corrected: bool = True) -> Surrogate:
    """Untrained, 32 points, segments of 4 steps; its corrector adds noise of a twentieth."""
    torch.manual_seed(0)
    model = Surrogate(architecture(LATENT, ("galilean",), 4, points=32, latent_tokens=8, latent_dim=8))
    if corrected:
        model.add_corrector(CORRECTOR).residual_scale.fill_(0.05)
    return model.eval()


def fields(count: int) -> tuple[Tensor, Tensor]:
    """First frames (B, 1, 32) and parameters (B, 1) for it."""
    x = (torch.arange(32) + 0.5) / 32
    phases = torch.arange(1, count + 1)[:, None, None]
    return torch.sin(2 * torch.pi * (x + 0.3 * phases)) + 0.2, torch.full((count, 1), 0.05)
