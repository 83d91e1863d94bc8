"""Signatures are checked at every call while tests run: a wrong shape never gets as far as a number."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from tests.model.small_models import architecture
from universal_simulator.evaluation.accuracy import nrmse_frames, relative_l2
from universal_simulator.evaluation.dressing import Dressing
from universal_simulator.inference.guards import project_mass
from universal_simulator.inference.rollout import rollout_fields
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import BURGERS
from universal_simulator.physics.invariants import pde_residual


def test_fields_of_two_grids_are_not_compared() -> None:
    with pytest.raises(TypeCheckError, match="truth"):
        relative_l2(torch.ones(2, 3, 1, 8), torch.ones(2, 3, 1, 1))
    with pytest.raises(TypeCheckError, match="initial"):
        nrmse_frames(torch.ones(2, 3, 1, 8), torch.ones(2, 3, 1, 8), torch.ones(2, 3, 1, 8))


def test_a_parameter_per_sample_is_needed() -> None:
    with pytest.raises(TypeCheckError, match="parameters"):
        pde_residual(torch.ones(2, 4, 1, 8), torch.ones(3, 1), 0.1, Grid((1.0,), (8,)), BURGERS)


def test_what_is_rolled_out_guarded_and_dressed_has_the_shapes_it_says() -> None:
    model = Surrogate(architecture(latent_tokens=8, latent_dim=8)).eval()
    initial, parameters = torch.ones(2, 1, 64), torch.full((2, 1), 0.1)
    assert rollout_fields(model, initial, parameters, steps=3).shape == (2, 3, 1, 64)
    with pytest.raises(TypeCheckError, match="parameters"):
        rollout_fields(model, initial, parameters[:1], steps=3)
    with pytest.raises(TypeCheckError, match="initial"):
        project_mass(torch.ones(2, 3, 1, 8), torch.ones(2, 1, 4))
    with pytest.raises(TypeCheckError, match="truth"):
        Dressing.fit(torch.ones(4, 3, 1, 8), torch.ones(4, 3, 1, 8))
