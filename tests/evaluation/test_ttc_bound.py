"""The bound of test-time compute: its regression finds what is there and nothing where nothing is."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from tests.inference.test_search import model, world
from tests.scripts import script


@pytest.fixture(scope="module")
def bound() -> ModuleType:
    return script("ttc_bound")


@pytest.mark.parametrize("known", [True, False])
def test_a_side_that_the_state_tells_is_found_and_one_that_it_does_not_is_not(
    bound: ModuleType, known: bool
) -> None:
    def sets(seed: int) -> object:
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(400, 2, 32, generator=generator).double()
        features = torch.randn(400, 3, generator=generator).double()
        side = features[:, 1] if known else torch.randn(400, generator=generator).double()
        error = side[:, None] * directions[:, 0] + 0.1 * torch.randn(400, 32, generator=generator).double()
        return bound.Sets(directions, error, features, bound.rms(error)[:, None])

    found = bound.bound(sets(0), sets(1))
    assert found["span"] > 0.8, "the error lies in the span"
    assert abs(found["constant"]) < 0.05, "on either side as often"
    state = found["state, ridge 0.01"]
    assert state > 0.8 if known else abs(state) < 0.1


def test_sets_of_a_search_hold_every_direction(bound: ModuleType) -> None:
    found = bound.sets_of(model(), world(3), beam=3)
    assert found.directions.shape[:2] == (9, 2 + 1 + 3), "three segments of three trajectories"
    assert bool(torch.isfinite(found.features).all())
    assert 0 < bound.saved(bound.span(found), found) <= 1
