"""Fits the learned combination of test-time compute on the half of the calibration split that rewards have.

Sets are those of the search's own rollouts that answer with their mean, whole trajectories from the initial
condition on, each seen under random exact symmetries; the weights are a ridge regression in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.data.batch import GROUP_DIGITS, Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import DataError
from universal_simulator.inference.search_accounts import Decision
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.combination import CombinationEntry
from universal_simulator.model.surrogate import Surrogate
from universal_simulator.training.reward import refuse_others, whole_rollouts

RIDGE = 0.1
#: how often each trajectory is seen, under symmetries of its own
SIGHTINGS = 2


def fit_combination(
    surrogate: Surrogate,
    ttc: TTCSection,
    guards: GuardsConfig,
    truth: Trajectories,
    dataset: Dataset,
    *,
    seed: int,
) -> None:
    """Give `surrogate` a combination fitted on `truth`, which must lie in the rewards' half of calibration."""
    refuse_others(truth, dataset)
    settings = {"combine": "regress", "residual_threshold": 0.0, "max_evaluations": 10**9, "solver": "off"}
    free = ttc.model_copy(update=settings)
    features: list[Tensor] = []
    directions: list[Tensor] = []
    errors: list[Tensor] = []
    generator = torch.Generator().manual_seed(seed)
    surrogate.forget_combination()
    for _ in range(SIGHTINGS):
        for frames, parameters in whole_rollouts(truth, generator):

            def note(decision: Decision, frames: Tensor = frames) -> None:
                found = decision.directions
                if found is None:
                    return
                centre = decision.question.fields[:, decision.question.reference]
                error = (frames[decision.rows, decision.step] - centre).flatten(1)
                kept = torch.isfinite(found.features).all(dim=1) & torch.isfinite(error).all(dim=1)
                features.append(found.features[kept])
                directions.append(found.fields[kept].flatten(2))
                errors.append(error[kept])

            predictor = SearchingPredictor(
                surrogate, guards, free, noise_seed=seed, observe=note, fitting=True
            )
            predictor.rollout(frames[:, 0], parameters, frames.shape[1] - 1)
    if not sum(len(part) for part in features):
        raise DataError("no rollout of the reward's training half is finite; train the operator longer")
    seen, sides, error = (torch.cat(parts) for parts in (features, directions, errors))
    entry = CombinationEntry(
        beam=ttc.beam,
        directions=sides.shape[1],
        features=seen.shape[1],
        sets=len(seen),
        groups=tuple(sorted({group[:GROUP_DIGITS] for group in truth.groups})),
    )
    surrogate.add_combination(entry).fit(seen, sides, error, ridge=RIDGE)
