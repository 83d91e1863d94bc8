"""Who is asked in `stochastic_ablation.py`, each with noise, width or recalibration of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from capacity_control import Run
from ttc_rivals import PLAIN

from universal_simulator.configuration.schema import EnsembleValidation, GuardsConfig
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.errors import UserError
from universal_simulator.evaluation.ablation import answer, inference_flops
from universal_simulator.evaluation.calibration_fit import fit_calibration
from universal_simulator.evaluation.contract import EnsemblePredictor, FieldPredictor
from universal_simulator.evaluation.dressing import Dressing, Dressings
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.inference.ensemble import StochasticPredictor
from universal_simulator.inference.perturbed import PerturbedOperator
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.inference.search_controls import representations_alone
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.calibration import Calibration
from universal_simulator.model.surrogate import Surrogate, load_surrogate
from universal_simulator.run_record import NoiseChoice, RunFolder
from universal_simulator.sampler_choice import choose_noise

Sampler = Literal["student", "teacher", "moments", "perturbed"]
SAMPLERS: tuple[Sampler, ...] = ("student", "teacher", "moments", "perturbed")
#: of these, also with members each in a representation of its own
REPRESENTED = ("student", "teacher", "moments")
#: copies of a point forecast in representations, whose mean answers
COPIES = (2, 3, 8)
#: of rms(u(0)), from which the perturbed operator takes the lowest CRPS on validation, per regime
AMPLITUDES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


@dataclass(frozen=True)
class Asked:
    """A predictor per regime; of an ensemble its calibration, of a dressed point its width."""

    predictors: Mapping[str, FieldPredictor]
    calibrations: Mapping[str, Calibration]
    dressings: Mapping[str, Dressing]


def asked_of(
    run: Run,
    control: Path | None,
    dataset: Dataset,
    *,
    samplers: tuple[Sampler, ...],
    members: int,
    calibration_groups: int | None,
    represented: bool = False,
    noise_groups: int | None = None,
    copies: tuple[int, ...] = (),
) -> tuple[dict[str, Asked], dict[str, Any]]:
    """Operator and control, bare and dressed, and the samplers; what was chosen on the way.

    represented: the samplers also with members in representations of their own. noise_groups: every sampler's
    noise is chosen here, on so many conditions to the end of the trajectory, in place of the run's. copies:
    operator and control also as the mean of so many representations. Raises UserError where neither student
    nor teacher is asked: the perturbed operator's members are counted against theirs.
    """
    guards, evaluation = run.config.guards, run.config.evaluation
    half = run.load(dataset, "calibration_uncertainty", calibration_groups)
    rules = run.config.training.ensemble_validation
    if noise_groups is not None:
        rules = rules.model_copy(update={"groups": noise_groups, "steps": None})
    validation = run.load(dataset, "validation", rules.groups)
    surrogate = load_surrogate(run.files.model)
    points = points_of("operator", surrogate, guards, copies)
    if control is not None:
        points |= points_of("control", load_surrogate(RunFolder.of_path(control).model), guards, copies)
    asked: dict[str, Asked] = {}
    for name, predictor in points.items():
        asked |= bare_and_dressed(name, predictor, half)
    ensembles: dict[str, Mapping[str, EnsemblePredictor]] = {}
    told: dict[str, Any] = {"calibration_groups": len(set(half.groups)), "calibration": {}}
    for name in (one for one in REPRESENTED if one in samplers):
        for moved in (False, True) if represented else (False,):
            found = sampling(
                run,
                name,  # type: ignore[arg-type] # one of the three
                validation,
                rules=rules,
                represented=moved,
                anew=moved or noise_groups is not None,
            )
            if found is not None:
                model, noise = found
                row = f"{name} represented" if moved else name
                told[f"{row}_noise"] = noise.model_dump()
                sampler = StochasticPredictor(model, guards, members=members)
                ensembles[row] = dict.fromkeys(half.regimes(), sampler)
    if "perturbed" in samplers:
        if not {"student", "teacher"} & ensembles.keys():
            raise UserError(
                "--samplers perturbed needs student or teacher: its members are as many as they cost"
            )
        cheapest = next(iter(ensembles.values()))
        ensembles["perturbed"], chosen = perturbed_at_equal_cost(
            run, surrogate, validation, next(iter(cheapest.values())), members
        )
        told |= chosen
    for name, predictors in ensembles.items():
        fits = {
            label: fit_calibration(
                predictors[label],
                half.subset(rows),
                dataset,
                first_frame=evaluation.first_frame,
                noise_seed=evaluation.noise_seed,
            )
            for label, rows in half.regimes().items()
        }
        asked[name] = Asked(predictors, fits, {})
        told["calibration"][name] = {
            label: {"choice": fit.entry.choices[0], "operator_share_of_point": fit.entry.operator_shares[0]}
            for label, fit in fits.items()
        }
    return asked, told


def points_of(
    name: str, surrogate: Surrogate, guards: GuardsConfig, copies: tuple[int, ...]
) -> dict[str, SurrogatePredictor]:
    """A model's point forecast alone, and as the mean of its copies in symmetric representations."""
    found: dict[str, SurrogatePredictor] = {name: SurrogatePredictor(surrogate, guards)}
    for count in copies:
        search = SearchingPredictor(surrogate, guards, PLAIN)
        found[in_representations(name, count)] = representations_alone(search, copies=count)
    return found


def in_representations(name: str, count: int) -> str:
    return f"{name} in {count} representations"


def bare_and_dressed(name: str, predictor: FieldPredictor, half: Trajectories) -> dict[str, Asked]:
    """A point forecast as it is, and with the width that is best on calibration data."""
    initial = half.fields[:, 0]
    raw = predictor.rollout(initial, half.parameters, half.fields.shape[1] - 1)
    dressings = Dressings.fit(predictor.guard(raw, initial, half.parameters), half)
    everywhere = dict.fromkeys(half.regimes(), predictor)
    return {
        name: Asked(everywhere, {}, {}),
        f"{name} dressed": Asked(everywhere, {}, {label: dressings.of(label) for label in everywhere}),
    }


def sampling(
    run: Run,
    sampler: Literal["teacher", "student", "moments"],
    validation: Trajectories,
    *,
    rules: EnsembleValidation,
    represented: bool = False,
    anew: bool = False,
) -> tuple[Surrogate, NoiseChoice] | None:
    """The run's model with this sampler and its noise; None where the model has dropped it.

    The moments' noise is chosen here by `rules`, as the run chose that of the others; anew: the others' too.
    """
    surrogate = load_surrogate(run.files.model)
    corrector = surrogate.corrector
    assert corrector is not None
    if sampler == "student" and corrector.student is None:
        return None
    surrogate.use_sampler(sampler)
    surrogate.represent_members(represented)
    if sampler == "moments" or anew:
        noise, _ = choose_noise(surrogate, guards=run.config.guards, truth=validation, rules=rules)
    else:
        noise = run.found.noise[sampler]
    for name, value in noise.model_dump(exclude={"at_edge"}).items():
        corrector.get_buffer(name).fill_(value)
    return surrogate, noise


def perturbed_at_equal_cost(
    run: Run, surrogate: Surrogate, validation: Trajectories, rival: EnsemblePredictor, members: int
) -> tuple[dict[str, EnsemblePredictor], dict[str, Any]]:
    """The perturbed operator with as many members as the rival's operations pay for, per regime at its best
    amplitude."""
    guards = run.config.guards
    alone = inference_flops(SurrogatePredictor(surrogate, guards), validation)
    equal = max(2, round(inference_flops(rival, validation) / alone))
    chosen: dict[str, float] = {}
    for label, rows in validation.regimes().items():
        part, scores = validation.subset(rows), {}
        for amplitude in AMPLITUDES:
            tried = PerturbedOperator(surrogate, guards, members=min(equal, members), amplitude=amplitude)
            found = answer(tried, part, label, rules=EnsembleRules(), batch_size=64, bootstrap_samples=1)
            scores[amplitude] = float(found.crps.nanmean())
        chosen[label] = min(scores, key=scores.__getitem__)
    told = {
        "perturbed_amplitude": chosen,
        "perturbed_amplitude_at_edge": [a for a, v in chosen.items() if v in (AMPLITUDES[0], AMPLITUDES[-1])],
        "perturbed_members": equal,
    }
    made: dict[str, EnsemblePredictor] = {
        label: PerturbedOperator(surrogate, guards, members=equal, amplitude=amplitude)
        for label, amplitude in chosen.items()
    }
    return made, told


def rules_of(one: Asked, truth: Trajectories, label: str, run: Run) -> EnsembleRules:
    """How a predictor's answers to the truth of one regime are read."""
    evaluation = run.config.evaluation
    return EnsembleRules.of(
        truth,
        one.calibrations.get(label),
        first_frame=evaluation.first_frame,
        noise_seed=evaluation.noise_seed,
    )
