"""What a search needs of its model, refused before anything is rolled out."""

from __future__ import annotations

from universal_simulator.configuration.schema import TTCSection
from universal_simulator.errors import UserError
from universal_simulator.model.surrogate import Surrogate


def refuse_unfitted(surrogate: Surrogate, ttc: TTCSection, *, asks_threshold: bool, fitting: bool) -> None:
    """UserError where a part that was never trained would have to answer.

    asks_threshold: somebody's cost is held against `residual_threshold`. fitting: the combination is being
    fitted, so that none answers yet.
    """
    if asks_threshold and ttc.residual_threshold > 0 and surrogate.architecture.reward is None:
        raise UserError(
            "ttc.residual_threshold is a share of the learned reward's 95th percentile, and this model has "
            "no learned reward; train it with ttc.enabled=true, or set ttc.residual_threshold=0"
        )
    fitted = surrogate.architecture.combination
    if ttc.combine != "regress" or fitting:
        return
    if fitted is None:
        raise UserError(
            "ttc.combine=regress asks a fitted combination, and this model has none: without one the answer "
            "would be its representations' mean; train it with ttc.enabled=true ttc.combine=regress, or "
            "score it on a run folder (usim evaluate RUN --ttc-set ttc.combine=regress), which fits one"
        )
    if fitted.beam != ttc.beam:
        raise UserError(
            f"this model's combination was fitted for ttc.beam={fitted.beam}, asked is {ttc.beam}; "
            "ask for the same beam, or train it anew"
        )
