"""The calibration error in bootstrap resamples, kept with a result so that gates can compare two of them in pairs.

ece is no mean over groups, so that per-group values would not do; its resamples are those of `bootstrap.SEED`,
the same for every record of the same protocol and number of groups: draw s of one belongs to draw s of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from universal_simulator.evaluation import uncertainty
from universal_simulator.evaluation.bootstrap import resample_weights
from universal_simulator.evaluation.ensemble import EnsembleMeasurement
from universal_simulator.run_record import Draws

#: resamples that are kept, and digits of each
DRAWS, DIGITS = 500, 6


def ece_draws(groups: Sequence[str], measured: EnsembleMeasurement) -> dict[str, Draws]:
    """`ece` of the recalibrated members in each resample; nothing where there is nothing to resample, or a
    member is not finite."""
    distinct = len(set(groups))
    if distinct < 2:
        return {}
    weights = torch.from_numpy(resample_weights(groups, samples=DRAWS))
    levels = uncertainty.central_levels(measured.members)
    found = uncertainty.ece(measured.pieces["coverage"], levels, weights)[1:]
    if not bool(torch.isfinite(found).all()):
        return {}
    return {"ece": Draws(groups=distinct, values=tuple(round(v, DIGITS) for v in found.tolist()))}
