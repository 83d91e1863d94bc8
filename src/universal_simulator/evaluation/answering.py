"""Who answers an evaluation: the model as it is, its ensemble, or its search; and how records name it."""

from __future__ import annotations

from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.evaluation.contract import FieldPredictor, stochastic
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.inference.ensemble import predictor_of
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.surrogate import Surrogate, hash_of
from universal_simulator.run_record import Predictor, content_hash


def asked_predictor(
    surrogate: Surrogate,
    guards: GuardsConfig,
    spacing_s: float,
    *,
    members: int,
    noise_seed: int,
    ttc: TTCSection | None,
) -> SurrogatePredictor:
    """ttc: with test-time compute as it says; None: the ensemble of a model that has one, else its rollout."""
    if ttc is not None:
        return SearchingPredictor(surrogate, guards, ttc, frame_spacing_s=spacing_s, noise_seed=noise_seed)
    return predictor_of(surrogate, guards, members=members, frame_spacing_s=spacing_s)


def described(
    surrogate: Surrogate, predictor: FieldPredictor, guards: tuple[str, ...], rules: EnsembleRules
) -> Predictor:
    """Who answered, as the record names it."""
    plain = Predictor(
        model_hash=hash_of(surrogate),
        weights="raw" if surrogate.architecture.weights == "raw" else "ema",
        guards=guards,
    )
    if isinstance(predictor, SearchingPredictor):
        return plain.model_copy(
            update={
                "test_time_compute": True,
                "solver_in_the_loop": predictor.solver_in_the_loop,
                "noise_seed": predictor.noise_seed,
                "search_hash": content_hash(predictor.ttc.model_dump(mode="json")),
            }
        )
    sampler = stochastic(predictor)
    if sampler is None:
        return plain
    return plain.model_copy(
        update={"members": sampler.members, "kind": rules.headline, "noise_seed": rules.noise_seed}
    )
