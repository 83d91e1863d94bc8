"""Who stands beside test-time compute in its joint table besides the model itself: teacher and student apart, and
the capacity control, alone and with representations.

A control's operator step is dearer than the model's; its operations are told in the model's, so that one
column holds both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from capacity_control import Run

from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.evaluation.equal_cost import Answer, Kind, Rivals, Spent
from universal_simulator.inference.test_time_compute import SearchingPredictor
from universal_simulator.model.surrogate import Surrogate, load_surrogate
from universal_simulator.training.combination import fit_combination

#: no reward is asked: who a rival is needs none
PLAIN = TTCSection(residual_threshold=0.0, max_evaluations=10**9)
REGRESS = TTCSection(beam=2, combine="regress", residual_threshold=0.0, max_evaluations=10**6)
#: members of an ensemble of its own row
SIZES = (2, 8)
#: the control's answer that is regressed as the model's own is
REGRESSED = "control, TTC regressed, beam 2, everywhere"


def samplers_of(path: Path) -> dict[str, Surrogate]:
    """The model once with its teacher and once with its student, each with the noise chosen for it."""
    run, found = Run.of(path.parent), {}
    for name in ("teacher", "student"):
        surrogate = load_surrogate(path)
        corrector = surrogate.corrector
        assert corrector is not None, "a run with stochastic stages has one"
        if name == "student" and corrector.student is None:
            continue
        surrogate.use_sampler(name)  # type: ignore[arg-type] # one of the two
        for buffer, value in run.found.noise[name].model_dump(exclude={"at_edge"}).items():
            corrector.get_buffer(buffer).fill_(value)
        found[name] = surrogate
    return found


def sampler_rows(samplers: dict[str, Surrogate], truth: Trajectories) -> dict[str, Answer]:
    """The members' own mean of each sampler: no recalibrated centre flatters one of them."""
    rows = {}
    for name, surrogate in samplers.items():
        rivals = Rivals(SearchingPredictor(surrogate, GuardsConfig(), PLAIN), truth, noise_seed=0)
        for size in SIZES:
            rows[f"{name}, mean of {size}"] = rivals.named("ensemble", size)
    return rows


@dataclass(frozen=True)
class Control:
    """A capacity control asked about one regime; dearer: its operator step in the model's."""

    rivals: Rivals
    dearer: float

    @classmethod
    def of(cls, surrogate: Surrogate, truth: Trajectories, *, step_flops: float) -> Control:
        predictor = SearchingPredictor(surrogate, GuardsConfig(), PLAIN)
        rivals = Rivals(predictor, truth, noise_seed=0)
        return cls(rivals, predictor.prices.step_flops / step_flops)

    def rows(self) -> dict[str, Answer]:
        rows = {"capacity control": self._told(self.rivals.named("operator", 1))}
        for count in (2, 3):
            rows[f"control, representations {count}"] = self._told(
                self.rivals.named("representations", count)
            )
        if self.rivals.predictor.surrogate.combination is not None:
            regressed = SearchingPredictor(self.rivals.predictor.surrogate, GuardsConfig(), REGRESS)
            rows[REGRESSED] = self._told(self.rivals.searched(regressed))
        return rows

    def at(self, budget: Spent, kind: Kind) -> dict[str, Answer]:
        """The control alone, and its representations with at least the budget."""
        own = replace(budget, operations=budget.operations / self.dearer)
        found = self.rivals.at(own, kind)
        names = {"operator": "control", "representations": "control representations"}
        return {names[name]: self._told(answer) for name, answer in found.items() if name in names}

    def _told(self, answer: Answer) -> Answer:
        spent = replace(answer.spent, operations=answer.spent.operations * self.dearer)
        return replace(answer, spent=spent)


def control_of(path: Path, dataset: Dataset) -> Surrogate:
    """A control with a combination of its own, fitted on its half of the calibration split."""
    surrogate = load_surrogate(path)
    half = dataset.load("calibration_rewards", time_stride=surrogate.architecture.time_stride)
    fit_combination(surrogate, REGRESS, GuardsConfig(), half, dataset, seed=0)
    return surrogate
