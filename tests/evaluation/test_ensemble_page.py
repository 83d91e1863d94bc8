"""The run page of a stochastic model: figures before and after, pictures, and still a small file."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.stochastic_world import Exact, world
from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.calibration_fit import fit_calibration
from universal_simulator.evaluation.ensemble import EnsembleRules
from universal_simulator.evaluation.ensemble_pictures import ensemble_picture
from universal_simulator.evaluation.evaluator import Evaluator, Examples
from universal_simulator.evaluation.protocols import protocol_of, rollout_frames
from universal_simulator.evaluation.report import grouped, number, page
from universal_simulator.run_record import (
    EvaluationRecord,
    EvaluationResult,
    Predictor,
    RegimeResult,
    RunRecord,
)

Found = tuple[Trajectories, RegimeResult, Examples]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    data = world(tmp_path_factory.mktemp("world"), trajectories=160)
    truth, predictor = data.load("selection"), Exact(width=0.5)
    calibration = fit_calibration(predictor, data.load("calibration_uncertainty"), data)
    rules = EnsembleRules.of(truth, calibration, first_frame=0)
    regimes, examples = Evaluator(truth, {}, batch_size=64, bootstrap_samples=50, ensemble=rules).run(
        predictor
    )
    return truth, regimes["all"], examples["all"]


def written(truth: Trajectories, regime: RegimeResult, examples: Examples) -> str:
    result = EvaluationResult(
        protocol=protocol_of(rollout_frames(time_stride=1), truth, dataset_identity="d", split="selection"),
        predictor=Predictor(
            model_hash="m", weights="ema", guards=(), members=16, kind="ensemble_mean", noise_seed=0
        ),
        regimes={"all": regime},
    )
    evaluation = EvaluationRecord(suite="full_eval", run_id="run-s0", result=result)
    record = RunRecord(run_id="run-s0", status="finished", evaluations={"full_eval": evaluation})
    return page(record, "full_eval", truth=truth, predictions={"all": examples})


def test_page_tells_before_and_after(found: Found) -> None:
    truth, regime, examples = found
    text = written(truth, regime, examples)
    assert len(text) < 500_000
    for name in ("ece", "ece_raw", "spread_skill", "spread_skill_raw"):
        assert number(regime.metrics[name].value) in text
    for words in (
        "point forecast of 16 members",
        "operator alone",
        "CRPS skill over the best constant width",
        "rank histogram",
        "saved by the point forecast, paired",
    ):
        assert words in text
    for name in ("nrmse_point", "nrmse_ensemble_mean", "nrmse_operator"):
        assert number(regime.curves[name][-1]) in text
    assert f"{number(-100 * (regime.metrics['point_gain_late'].value or 0))} %" in text
    assert "not recalibrated" not in text
    assert text.count("data:image/png;base64,") == 3
    headings = grouped(regime.metrics)
    assert "Further" not in headings
    assert {"ece", "crps_skill", "sharpness", "point_gain"} <= headings["Stability and uncertainty"].keys()


def test_an_ensemble_without_calibration_says_so(found: Found) -> None:
    truth, _, examples = found
    regime = Evaluator(truth, {}, batch_size=64, bootstrap_samples=10).run(Exact(members=4))[0]["all"]
    text = written(truth, regime, examples)
    assert "(not recalibrated)" in text
    assert "constant width missing (not recalibrated" in text
    two = Evaluator(truth, {}, batch_size=64, bootstrap_samples=10).run(Exact(members=2))[0]["all"]
    assert "spread_skill_lowest_bin" not in two.metrics, "two members have no halves to sort by"
    assert ensemble_picture(two, examples, truth, dpi=44)


def test_a_deterministic_page_has_no_such_picture(found: Found) -> None:
    truth, _, _ = found
    regimes, examples = Evaluator(truth, {}, batch_size=64, bootstrap_samples=10).run(Exact(members=1))
    assert "<h3>Uncertainty</h3>" not in written(truth, regimes["all"], examples["all"])
    with pytest.raises(ValueError, match="no members"):
        ensemble_picture(regimes["all"], examples["all"], truth, dpi=44)


@pytest.mark.parametrize(
    "curve",
    [
        "coverage",
        "rank_histogram",
        "spread_skill",
        "spread_skill_binned",
        "spread_skill_binned_raw",
        "point_gain",
    ],
)
def test_every_curve_is_in_the_picture(found: Found, curve: str) -> None:
    truth, regime, examples = found
    changed = {**regime.curves, curve: tuple(0.5 * (v or 0) + 0.1 for v in regime.curves[curve])}
    before, after = (
        pixels(ensemble_picture(one, examples, truth, dpi=60))
        for one in (regime, regime.model_copy(update={"curves": changed}))
    )
    assert (before != after).any()


def pixels(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))


def test_pictures_are_reproducible(found: Found) -> None:
    truth, regime, examples = found
    once, again = (ensemble_picture(regime, examples, truth, dpi=60) for _ in range(2))
    assert once == again
    assert len(once) < 60_000
