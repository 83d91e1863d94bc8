"""Controls of test-time compute: its representations without a reward, and acting where chance says.

What the learned reward is worth is what a search gains over these at equal cost: representations
alone show what is no merit of any reward, acting at random (as many segments of as many
trajectories) what is no merit of knowing where. A control that acts by schedule asks no threshold and pays
none of its questions: its operations are fewer than the search's, in the control's favour.
"""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.configuration.schema import TTCSection
from universal_simulator.inference.test_time_compute import SearchingPredictor

#: everything is acted on, whatever it costs
UNLIMITED = {"residual_threshold": 0.0, "max_evaluations": 10**9}


def representations_alone(
    predictor: SearchingPredictor, *, copies: int, schedule: Tensor | None = None
) -> SearchingPredictor:
    """The mean of `copies` partial trajectories of the same model: no candidates, corrector or reward."""
    settings = {**UNLIMITED, "beam": copies, "solver": "off", "combine": "average"}
    return _like(predictor, predictor.ttc.model_copy(update=settings), rewarded=False, schedule=schedule)


def scheduled(predictor: SearchingPredictor, schedule: Tensor) -> SearchingPredictor:
    """The same search, acting where `schedule` (B, S) says in place of threshold and budget."""
    return _like(predictor, predictor.ttc, rewarded=predictor.rewarded, schedule=schedule)


def at_random(acts: Tensor, *, seed: int) -> Tensor:
    """As many acts (B, S) as given, each pair of trajectory and segment as likely as any other."""
    order = torch.randperm(acts.numel(), generator=torch.Generator().manual_seed(seed))
    found = torch.zeros(acts.numel(), dtype=torch.bool)
    found[order[: int(acts.sum())]] = True
    return found.reshape(acts.shape)


def at_first(acts: Tensor) -> Tensor:
    """As many acts (B, S) as given, in the first segments of all trajectories: a rule without any reward."""
    size, segments = acts.shape
    found = torch.zeros(segments * size, dtype=torch.bool)
    found[: int(acts.sum())] = True
    return found.reshape(segments, size).T.contiguous()


def _like(
    predictor: SearchingPredictor, ttc: TTCSection, *, rewarded: bool, schedule: Tensor | None
) -> SearchingPredictor:
    return SearchingPredictor(
        predictor.surrogate,
        predictor.guards_config,
        ttc,
        frame_spacing_s=predictor.frame_spacing_s,
        noise_seed=predictor.noise_seed,
        cost=predictor.given_cost,
        rewarded=rewarded,
        schedule=schedule,
    )
