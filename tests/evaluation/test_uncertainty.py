"""Uncertainty against plain loops, perfect ensembles, cheats and broken members."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.evaluation.ensembles_by_hand import (
    B,
    C,
    M,
    T,
    X,
    each,
    fair_crps_by_hand,
    normal,
    per_frame,
    perfect,
    square_by_hand,
    tiny,
    variance_by_hand,
)
from universal_simulator.evaluation import uncertainty as u
from universal_simulator.evaluation.recalibration import Recalibration


def test_levels_are_the_ensembles_own_plotting_positions() -> None:
    assert u.central_levels(4).tolist() == pytest.approx([1 / 5, 3 / 5])
    assert u.central_levels(3).tolist() == pytest.approx([1 / 2])
    assert u.central_levels(2).tolist() == pytest.approx([1 / 3])
    assert len(u.central_levels(32)) == 16
    for members in (2, 7, 32, 41, 42, 100, 1001):
        levels = u.central_levels(members)
        positions = levels * (members + 1)
        assert len(levels) == min(20, members // 2)
        assert torch.allclose(positions, positions.round())
        assert bool((levels.diff() > 0).all())
        assert float(levels[0]) > 0
        assert float(levels[-1]) == pytest.approx((members - 1) / (members + 1))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("members", [2, 5, 8])
def test_coverage_is_the_loop(members: int, ties: bool) -> None:
    ensemble, truth = tiny(members, ties=ties)
    found = u.coverage(ensemble, truth)
    for index, level in enumerate(u.central_levels(members).tolist()):
        k = round((members + 1) * (1 - level) / 2)

        def inside(values: list[float], true: float, k: int = k) -> float:
            if not ties:
                low, high = sorted(values)[k - 1], sorted(values)[members - k]
                return float(low <= true <= high)
            below, same = sum(v < true for v in values), sum(v == true for v in values)
            ranks = [below + j for j in range(same + 1)]
            return sum(k <= rank <= members - k for rank in ranks) / len(ranks)

        assert found[..., index].numpy() == pytest.approx(per_frame(ensemble, truth, inside))


def test_ece_is_the_loop_and_weights_are_a_resample() -> None:
    ensemble, truth = tiny()
    covered, levels = u.coverage(ensemble, truth), u.central_levels(M)

    def by_hand(rows: list[int]) -> float:
        total = 0.0
        for t in range(T):
            for p, level in enumerate(levels.tolist()):
                total += abs(sum(float(covered[b, t, p]) for b in rows) / len(rows) - level)
        return total / (T * len(levels))

    assert float(u.ece(covered, levels)) == pytest.approx(by_hand([0, 1, 2]))
    assert float(u.ece(covered, levels, torch.tensor([0.0, 2.0, 1.0]))) == pytest.approx(by_hand([1, 1, 2]))
    weights = torch.tensor([[1, 1, 1], [0, 3, 0], [2, 0, 1]])
    expected = [by_hand(rows) for rows in ([0, 1, 2], [1, 1, 1], [0, 0, 2])]
    assert u.ece(covered, levels, weights).tolist() == pytest.approx(expected)
    assert u.ece_frames(covered, levels, weights).shape == (3, T)
    with pytest.raises(ValueError, match="do not fit"):
        u.ece(covered, levels, torch.ones(B + 1))


def test_errors_cancel_between_samples_but_not_between_lead_times() -> None:
    levels = torch.tensor([0.5], dtype=torch.float64)
    between_samples = torch.tensor([[[0.25]], [[0.75]]], dtype=torch.float64)
    assert float(u.ece(between_samples, levels)) == 0.0
    assert float(u.ece(between_samples.transpose(0, 1), levels)) == 0.25


@pytest.mark.parametrize("members", [2, 5, 8])
def test_fair_crps_is_the_loop(members: int) -> None:
    ensemble, truth = tiny(members)
    expected = per_frame(ensemble, truth, fair_crps_by_hand)
    assert u.crps_frames(ensemble, truth).numpy() == pytest.approx(expected)
    assert u.crps_fair(ensemble, truth).numpy() == pytest.approx(expected.mean(axis=1))
    rising = ensemble.sort(dim=1).values
    assert torch.allclose(u.crps_frames(rising, truth, ordered=True), u.crps_frames(ensemble, truth))
    assert torch.equal(u.sharpness_frames(rising, truth, ordered=True), u.sharpness_frames(ensemble, truth))


def test_gaussian_crps_is_the_integral() -> None:
    grid = np.linspace(-30, 30, 600_001)
    for mean, width, true in ((0.0, 1.0, 0.3), (1.0, 2.5, -2.0), (0.5, 0.2, 0.5)):
        cdf = 0.5 * (1 + torch.erf(torch.from_numpy((grid - mean) / (width * math.sqrt(2)))).numpy())
        integral = float(((cdf - (grid >= true)) ** 2).sum() * (grid[1] - grid[0]))
        found = u.crps_gaussian(*(torch.tensor(v, dtype=torch.float64) for v in (mean, width, true)))
        assert float(found) == pytest.approx(integral, abs=1e-4)
    zero = u.crps_gaussian(torch.tensor(1.0), torch.tensor(0.0), torch.tensor([1.0, -2.0]))
    assert zero.tolist() == [0.0, 3.0]


def test_reference_of_constant_width_is_the_loop() -> None:
    ensemble, truth = tiny()
    mean = u.ensemble_mean(ensemble)
    width = u.constant_width(mean, truth)
    for t, c in np.ndindex(T, C):
        errors = [float(mean[b, t, c, i] - truth[b, t, c, i]) for b, i in np.ndindex(B, X)]
        assert float(width[t, c]) == pytest.approx(math.sqrt(sum(e * e for e in errors) / len(errors)))
    found = u.crps_constant_frames(ensemble, truth, width)
    for b, t in np.ndindex(B, T):
        scores = []
        for c, i in np.ndindex(C, X):
            w = float(width[t, c])
            z = float(truth[b, t, c, i] - mean[b, t, c, i]) / w
            density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            scores.append(w * (z * math.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi)))
        assert float(found[b, t]) == pytest.approx(math.sqrt(M / (M + 1)) * sum(scores) / len(scores))
    skill = u.crps_skill(u.crps_fair(ensemble, truth), found.mean(dim=1))
    crps = per_frame(ensemble, truth, fair_crps_by_hand)
    assert float(skill) == pytest.approx(1 - crps.mean() / found.numpy().mean())
    assert u.crps_skill(u.crps_frames(ensemble, truth), found, torch.ones(7, B)).shape == (7, T)
    with pytest.raises(ValueError, match="one per lead time"):
        u.crps_constant_frames(ensemble, truth, width[:-1])


def test_best_constant_width_is_the_minimum_and_the_rms_for_gaussian_errors() -> None:
    errors = normal(3, 200, 2, 1, 64)
    errors[:, 1] *= errors[:, 1].square()
    best, plain = (f(errors, torch.zeros_like(errors)) for f in (u.best_constant_width, u.constant_width))

    def score(width: Tensor) -> Tensor:
        return u.crps_gaussian(errors, width[..., None], torch.zeros_like(errors)).mean(dim=(0, 3))

    assert float(best[0] / plain[0]) == pytest.approx(1, abs=0.02)
    assert float(best[1] / plain[1]) < 0.7
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert bool((score(factor * best) > score(best)).all())


def test_spread_and_error_are_the_loop() -> None:
    ensemble, truth = tiny()
    spread, error = u.spread_and_error(ensemble, truth)
    expected = (M + 1) / M * per_frame(ensemble, truth, variance_by_hand)
    assert spread.numpy() == pytest.approx(expected)
    squares = per_frame(ensemble, truth, square_by_hand)
    assert error.numpy() == pytest.approx(squares)
    pooled = u.spread_skill(spread.mean(dim=1), error.mean(dim=1))
    assert float(pooled) == pytest.approx(math.sqrt(expected.mean() / squares.mean()))
    rows = u.spread_skill(spread, error, torch.tensor([[1, 0, 2]]))
    resampled = expected[[0, 2, 2]].mean(axis=0) / squares[[0, 2, 2]].mean(axis=0)
    assert rows[0].numpy() == pytest.approx(np.sqrt(resampled))


def test_binned_spread_skill_is_the_loop() -> None:
    ensemble, truth = tiny()
    bins, points = 3, each(ensemble, truth)
    spread, error = np.zeros((B, bins)), np.zeros((B, bins))
    for sorter, counted in ((slice(0, 2), slice(2, M)), (slice(2, M), slice(0, 2))):
        order = sorted(points, key=lambda point: variance_by_hand(point[1][sorter]))
        for place, ((b, _), members, true) in enumerate(order):
            index = place * bins // len(order)
            spread[b, index] += (M + 1) / M * variance_by_hand(members[counted])
            error[b, index] += square_by_hand(members, true)
    found = u.spread_bins(ensemble, truth, bins)
    assert found[0].numpy() == pytest.approx(spread)
    assert found[1].numpy() == pytest.approx(error)
    ratio = u.spread_skill_binned(ensemble, truth, bins)
    assert ratio.numpy() == pytest.approx(np.sqrt(spread.sum(axis=0) / error.sum(axis=0)))
    assert u.spread_skill_binned(ensemble, truth, bins, torch.ones(6, B)).shape == (6, bins)
    with pytest.raises(ValueError, match="at least 4"):
        u.spread_bins(ensemble[:, :3], truth, bins)


@pytest.mark.parametrize(("members", "k"), [(2, 1), (5, 1), (32, 2), (40, 2)])
def test_sharpness_is_the_loop(members: int, k: int) -> None:
    ensemble, truth = tiny(members)
    widths = per_frame(ensemble, truth, lambda v, _: sorted(v)[members - k] - sorted(v)[k - 1]).mean(axis=1)
    scale = [math.sqrt(sum(v * v for v in row.flatten().tolist()) / row.numel()) for row in truth]
    assert u.sharpness(ensemble, truth).numpy() == pytest.approx(widths / scale)


def test_rank_histogram_is_the_loop_and_sums_to_the_points() -> None:
    ensemble, truth = tiny()
    expected = np.zeros((B, M + 1))
    for (b, _), members, true in each(ensemble, truth):
        expected[b, sum(v < true for v in members)] += 1
    assert u.rank_histogram(ensemble, truth).numpy() == pytest.approx(expected)
    expected = np.zeros((B, M + 1))
    for (b, _), members, true in each(*tiny(ties=True)):
        below, same = sum(v < true for v in members), sum(v == true for v in members)
        expected[b, below : below + same + 1] += 1 / (same + 1)
    tied = u.rank_histogram(*tiny(ties=True))
    assert tied.numpy() == pytest.approx(expected)
    assert tied.sum(dim=1).tolist() == pytest.approx([T * C * X] * B)


@pytest.mark.parametrize("rounded", [False, True])
def test_rank_histogram_of_a_perfect_ensemble_is_flat(rounded: bool) -> None:
    ensemble, truth, _ = perfect(5, 8)
    if rounded:
        ensemble, truth = ensemble.round(), truth.round()
    counts = u.rank_histogram(ensemble, truth).sum(dim=0)
    expected = counts.sum() / 9
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 20.1, "chi-square with 8 degrees of freedom exceeds this once in a hundred"
    narrow = u.rank_histogram(ensemble.mean(1, keepdim=True) + 0.5 * ensemble, truth).sum(dim=0)
    assert float(((narrow - expected) ** 2 / expected).sum()) > 100


@pytest.mark.parametrize("members", [4, 8, 32])
def test_perfect_ensemble_of_any_size_is_calibrated(members: int) -> None:
    ensemble, truth, _ = perfect(10, members, samples=64)
    assert float(u.ece(u.coverage(ensemble, truth), u.central_levels(members))) < 0.02
    spread, error = u.spread_and_error(ensemble, truth)
    assert float(u.spread_skill(spread.mean(dim=1), error.mean(dim=1))) == pytest.approx(1, abs=0.05)
    assert u.spread_skill_binned(ensemble, truth, 4).tolist() == pytest.approx([1.0] * 4, abs=0.1)


def test_bins_do_not_sort_a_perfect_ensemble_by_its_own_noise() -> None:
    ensemble, truth, _ = perfect(20, 16, samples=64, uneven=False)
    assert u.spread_skill_binned(ensemble, truth, 5).tolist() == pytest.approx([1.0] * 5, abs=0.06)
    stretched = ensemble.mean(1, keepdim=True) + torch.linspace(0.5, 2, 64) * (
        ensemble - ensemble.mean(1, keepdim=True)
    )
    found = u.spread_skill_binned(stretched, truth, 5)
    assert float(found[0]) < 0.8
    assert float(found[-1]) > 1.25


@pytest.mark.parametrize("members", [16, 32])
def test_constant_width_has_no_skill_and_the_true_width_has(members: int) -> None:
    """Also a constant narrower than the rms, which is the better one under uneven errors."""
    fit_ensemble, fit_truth, _ = perfect(30, members)
    ensemble, truth, _ = perfect(40, members)
    shape = (32, 1, 4, 1, 64)
    fit_centre, centre = normal(32, *shape), normal(42, *shape)  # those of perfect(30), perfect(40)

    def skill(fitted: Tensor, candidate: Tensor, fit: Callable[[Tensor, Tensor], Tensor]) -> float:
        width = fit(u.ensemble_mean(fitted), fit_truth)
        reference = u.crps_constant_frames(candidate, truth, width).mean(dim=1)
        return float(u.crps_skill(u.crps_fair(candidate, truth), reference))

    rms, best = (f(fit_centre[:, 0], fit_truth) for f in (u.constant_width, u.best_constant_width))
    assert bool((best < 0.95 * rms).all())
    for width in (rms, best):
        cheats = [
            middle + width[:, :, None] * normal(50 + index, 32, members, 4, 1, 64)
            for index, middle in enumerate((fit_centre, centre))
        ]
        assert skill(cheats[0], cheats[1], u.best_constant_width) < 0.0
        assert skill(cheats[0], cheats[1], u.constant_width) < 0.03
    assert skill(cheats[0], cheats[1], u.constant_width) > 0.0, "why the rms is not the reference of a gate"
    assert skill(fit_ensemble, ensemble, u.best_constant_width) > 0.05
    assert skill(fit_ensemble, ensemble, u.constant_width) > 0.05


def test_constant_width_on_even_errors_scores_zero() -> None:
    ensemble, truth, _ = perfect(60, 8, samples=128, uneven=False)
    width = u.constant_width(u.ensemble_mean(ensemble), truth)
    reference = u.crps_constant_frames(ensemble, truth, width).mean(dim=1)
    assert float(u.crps_skill(u.crps_fair(ensemble, truth), reference)) == pytest.approx(0, abs=0.01)


def test_fair_crps_has_the_same_expectation_for_every_size() -> None:
    points, true = 20_000, 0.7
    exact = float(u.crps_gaussian(*(torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0, true))))
    for members in (2, 4, 64):
        ensemble = normal(60 + members, points // 100, members, 1, 1, 100)
        scores = u.crps_fair(ensemble, torch.full((points // 100, 1, 1, 100), true))
        error = float(scores.std() / math.sqrt(len(scores)))
        assert abs(float(scores.mean()) - exact) < 4 * error
        assert error < 0.01


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "coverage": u.coverage,
    "crps_frames": u.crps_frames,
    "crps_fair": u.crps_fair,
    "crps_constant_frames": lambda x, y: u.crps_constant_frames(x, y, torch.ones(T, C)),
    "spread_and_error": lambda x, y: torch.stack(u.spread_and_error(x, y), dim=-1),
    "spread_bins": lambda x, y: torch.stack(u.spread_bins(x, y, 3), dim=-1),
    "sharpness": u.sharpness,
    "rank_histogram": u.rank_histogram,
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_member_is_never_dropped(name: str, value: float) -> None:
    ensemble, truth = tiny()
    whole = METRICS[name](ensemble, truth)
    ensemble[1, 2, 3, 0, 4] = value
    found = METRICS[name](ensemble, truth)
    if found.ndim > 1 and found.shape[1] == T:
        broken = torch.zeros(B, T, dtype=torch.bool)
        broken[1, 3] = True
    else:
        broken = torch.tensor([False, True, False])
    rest = found.flatten(broken.ndim) if found.ndim > broken.ndim else found[..., None]
    assert not bool(rest[broken].isfinite().any())
    assert bool(rest[~broken].isfinite().all())
    if name != "spread_bins":  # its other samples keep their points, between edges that may move
        assert torch.equal(found[~broken] if found.ndim >= broken.ndim else found, whole[~broken])


@pytest.mark.parametrize("name", METRICS)
def test_one_member_and_wrong_shapes_are_refused(name: str) -> None:
    ensemble, truth = tiny()
    with pytest.raises(ValueError, match="at least"):
        METRICS[name](ensemble[:, :1], truth)
    with pytest.raises(ValueError, match="needs a truth"):
        METRICS[name](ensemble, truth[..., :-1])


def test_one_member_has_no_levels_and_no_recalibration() -> None:
    ensemble, truth = tiny()
    with pytest.raises(ValueError, match="at least 2"):
        u.central_levels(1)
    with pytest.raises(ValueError, match="at least 2"):
        Recalibration.fit(ensemble[:, :1], truth)
    with pytest.raises(ValueError, match="at least 2"):
        Recalibration(torch.ones(T)).apply(ensemble[:, :1])


@pytest.mark.parametrize("name", METRICS)
def test_chunks_of_frames_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble, truth = tiny()
    whole, scaled = METRICS[name](ensemble, truth), Recalibration.fit(ensemble, truth)
    monkeypatch.setattr(u, "VALUES_AT_ONCE", 1)
    assert torch.allclose(METRICS[name](ensemble, truth), whole, rtol=1e-12)
    assert torch.allclose(Recalibration.fit(ensemble, truth).apply(ensemble), scaled.apply(ensemble))


def test_two_space_axes_are_points_like_others() -> None:
    ensemble, truth = tiny()
    square = ensemble.reshape(B, M, T, C, 2, 3), truth.reshape(B, T, C, 2, 3)
    for name, metric in METRICS.items():
        assert torch.allclose(metric(*square), metric(ensemble, truth)), name
    assert torch.allclose(Recalibration.fit(*square).scale, Recalibration.fit(ensemble, truth).scale)
