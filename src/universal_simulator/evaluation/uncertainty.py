"""Uncertainty of ensembles: calibration, sharpness and proper scores, in physical units.

ensemble (B, M, T, C, X), truth (B, T, C, X) over the predicted frames; members must be
exchangeable and independent of each other. Per-sample results keep the leading axis B; what is
pooled over samples (`ece`, `crps_skill`, `spread_skill`) takes them with optional `weights`, so
that a bootstrap over groups needs the ensemble only once: (B,) gives one value, (S, B) one per
resample, a sample's weight being how often its group was drawn. Everything is accumulated in
float64, some frames at a time. A point with a NaN or inf member is NaN in every metric and so
is whatever contains it, also under weight 0: nothing is dropped. One member is no ensemble:
ValueError. On a deterministic equation the spread is the model's error, not nature's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: central intervals that are scored, at most: an ensemble of M members has M // 2
LEVELS = 20
#: level of the interval whose width is `sharpness`
SHARPNESS_LEVEL = 0.9
#: members' values in float64 at a time (32 MiB): bounds the memory
VALUES_AT_ONCE = 4 * 1024**2


def _depths(members: int) -> Tensor:
    """k of the scored intervals [x_(k), x_(M + 1 - k)], widest last."""
    if members < 2:
        raise ValueError(f"uncertainty needs at least 2 members, got {members}")
    deepest = members // 2
    return torch.linspace(deepest, 1, min(LEVELS, deepest), dtype=torch.float64).round().long()


def central_levels(members: int) -> Tensor:
    """p_k = (M + 1 - 2k) / (M + 1), nominal levels of the intervals [x_(k), x_(M + 1 - k)], (P,).

    Rising, in (0, 1). A truth exchangeable with the members falls between those order statistics
    with exactly this probability, whatever M and the distribution: no quantile is interpolated.
    P = min(20, M // 2): 16 levels at M = 32, 2 at M = 4, one at M = 2 or 3; from M = 42 twenty
    spread evenly. Levels in between would be averages of neighbours and tell nothing new.
    """
    return (members + 1 - 2 * _depths(members).double()) / (members + 1)


def _check(ensemble: Tensor, truth: Tensor) -> None:
    if ensemble.ndim < 4 or ensemble.shape[:1] + ensemble.shape[2:] != truth.shape:
        raise ValueError(
            f"an ensemble (B, M, T, C, X) needs a truth (B, T, C, X): {tuple(ensemble.shape)} "
            f"against {tuple(truth.shape)}"
        )
    if ensemble.shape[1] < 2:
        raise ValueError(f"uncertainty needs at least 2 members, got {ensemble.shape[1]}")


def frames_at_once(ensemble: Tensor, truth: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in float64, some frames at a time."""
    _check(ensemble, truth)
    frames = max(1, VALUES_AT_ONCE // max(1, ensemble[:, :, :1].numel()))
    for members, true in zip(ensemble.split(frames, dim=2), truth.split(frames, dim=1), strict=True):
        yield members.double(), true.double()


def broken_points(members: Tensor, truth: Tensor) -> Tensor:
    """Points with a value that is not finite, (B, T, C, X)."""
    return ~torch.isfinite(members.sum(dim=1) + truth)


def pooled(values: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted mean over samples of (B, ...): (...), or (S, ...) under weights (S, B)."""
    values = values.double()
    if weights is None:
        return values.mean(dim=0)
    if weights.shape[-1] != len(values):
        raise ValueError(f"weights {tuple(weights.shape)} do not fit {len(values)} samples")
    weights = weights.to(values)
    total = weights @ values.flatten(1) if values.ndim > 1 else weights @ values
    share = weights.sum(dim=-1)
    total = total.reshape(*share.shape, *values.shape[1:])
    return total / share.reshape(*share.shape, *[1] * (values.ndim - 1))


def ensemble_mean(ensemble: Tensor) -> Tensor:
    """Mean over members (B, T, C, X), accumulated in float64 and rounded to the ensemble's dtype."""
    frames = max(1, VALUES_AT_ONCE // max(1, ensemble[:, :, :1].numel()))
    parts = [part.double().mean(dim=1).to(ensemble.dtype) for part in ensemble.split(frames, dim=2)]
    return torch.cat(parts, dim=1)


# ---------------------------------------------------------------- calibration


def rank_counts(below: Tensor, up_to: Tensor, broken: Tensor, members: int) -> Tensor:
    """How many points (C, X) have #{members < y} = 0 .. M, (B, T, M + 1), float64.

    From #{members < y} and #{members <= y}, (B, T, C, X). A tied truth counts in equal shares for
    every rank that breaking ties at random could give it. NaN in frames with a broken point.
    """
    below, up_to = below.flatten(2).long(), up_to.flatten(2).long()
    each = 1 / (up_to - below + 1).double()
    edges = torch.zeros(*below.shape[:2], members + 2, dtype=torch.float64, device=below.device)
    edges.scatter_add_(2, below, each).scatter_add_(2, up_to + 1, -each)
    counts = edges.cumsum(dim=2)[..., :-1]
    return counts.masked_fill(broken.flatten(2).any(dim=2, keepdim=True), torch.nan)


def shares_covered(counts: Tensor) -> Tensor:
    """Share of the points inside each central interval, (B, T, P), from `rank_counts`."""
    members = counts.shape[-1] - 1
    up_to = counts.cumsum(dim=-1)
    first = _depths(members).to(counts.device)
    return (up_to[..., members - first] - up_to[..., first - 1]) / up_to[..., -1:]


def rank_frames(ensemble: Tensor, truth: Tensor) -> Tensor:
    """`rank_histogram` per lead time, (B, T, M + 1)."""
    parts = []
    for members, true in frames_at_once(ensemble, truth):
        below = (members < true[:, None]).sum(dim=1, dtype=torch.int32)
        up_to = (members <= true[:, None]).sum(dim=1, dtype=torch.int32)
        parts.append(rank_counts(below, up_to, broken_points(members, true), ensemble.shape[1]))
    return torch.cat(parts, dim=1)


def coverage(ensemble: Tensor, truth: Tensor) -> Tensor:
    """mean over (C, X) of 1[x_(k) <= y <= x_(M + 1 - k)], (B, T, P), P as in `central_levels`.

    Range [0, 1]; right is the level itself. Ties count with the probability that breaking them
    at random would put the truth inside: a point where all members equal the truth (a Dirichlet
    boundary) is calibrated, a collapsed ensemble beside the truth covers nothing.
    Source: Kuleshov et al. 2018, for central intervals between order statistics.
    """
    return shares_covered(rank_frames(ensemble, truth))


def ece_frames(coverages: Tensor, levels: Tensor, weights: Tensor | None = None) -> Tensor:
    """mean_p |mean_b coverage(p) - p| per lead time: (B, T, P) gives (T,), or (S, T)."""
    return (pooled(coverages, weights) - levels.to(coverages.device)).abs().mean(dim=-1)


def ece(coverages: Tensor, levels: Tensor, weights: Tensor | None = None) -> Tensor:
    """mean_t mean_p |mean_b coverage_t(p) - p|: a scalar, or (S,) under weights (S, B).

    Arguments from `coverage` and `central_levels`. Range: 0 is calibrated, about .5 is an
    ensemble that never covers; lower is better. Samples are pooled before the absolute value,
    lead times after: errors of opposite sign cancel between samples, not between lead times.
    Bias: upwards by noise, about .3 / sqrt(independent points per lead time), and in every
    bootstrap resample once more. Blind to *where* the spread is: a constant width can score 0.
    Source: Kuleshov et al. 2018, as a mean absolute error over central intervals.
    """
    return ece_frames(coverages, levels, weights).mean(dim=-1)


def rank_histogram(ensemble: Tensor, truth: Tensor) -> Tensor:
    """How often #{members < truth} = 0 .. M, (B, M + 1), float64; sums to T C X per sample.

    Flat is right; U is too narrow, a hump too wide, a slope a bias. Ties count in equal shares for
    every rank in reach. Samples with a value that is not finite are NaN throughout.
    Source: Hamill 2001.
    """
    return rank_frames(ensemble, truth).sum(dim=1)


# ---------------------------------------------------------------- proper scores


def _crps(members: Tensor, truth: Tensor, ordered: bool) -> Tensor:
    """Fair CRPS of every point, (B, T, C, X)."""
    count = members.shape[1]
    errors = members - truth[:, None]
    if not ordered:
        errors = errors.sort(dim=1).values
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=members.device)
    pairs = torch.tensordot((2 * ranks - count - 1) / (count * (count - 1)), errors, dims=([0], [1]))
    return errors.abs().mean(dim=1) - pairs


def crps_frames(ensemble: Tensor, truth: Tensor, *, ordered: bool = False) -> Tensor:
    """`crps_fair` per lead time, (B, T). ordered: the members of each point ascend already."""
    parts = [_crps(*chunk, ordered).flatten(2).mean(dim=2) for chunk in frames_at_once(ensemble, truth)]
    return torch.cat(parts, dim=1)


def crps_fair(ensemble: Tensor, truth: Tensor) -> Tensor:
    """mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 M (M - 1)), mean over frames, channels, points: (B,).

    The field's unit, lower is better; a mean over few points can be slightly negative. Unbiased
    in M: its expectation is the CRPS of the distribution the members come from. The pair term
    is sum_i (2i - M - 1) x_(i) / (M (M - 1)), by sorting. Bias: members that depend on each
    other (rescaled about their mean) are no longer scored quite fairly; inflating a constant
    width gains up to .1 % at M = 32, 9 % at M = 4. Source: Ferro 2014; Gneiting & Raftery 2007.
    """
    return crps_frames(ensemble, truth).mean(dim=1)


def crps_gaussian(mean: Tensor, width: Tensor, truth: Tensor) -> Tensor:
    """w [z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)], z = (y - mean) / w, of every point.

    Tensors that broadcast, w >= 0 (0: |y - mean|). The field's unit, lower is better.
    Source: Gneiting & Raftery 2007, eq. 21, with the sign of a loss.
    """
    error, width = (truth.double() - mean.double()), width.double()
    z = error / torch.where(width > 0, width, torch.ones_like(width))
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    score = error * torch.erf(z / math.sqrt(2)) + width * (2 * density - 1 / math.sqrt(math.pi))
    return torch.where(width == 0, error.abs(), score)


def constant_width(mean: Tensor, truth: Tensor) -> Tensor:
    """sqrt(mean_{b, x} (mean - y)^2) per lead time and channel, (T, C), float64.

    mean (B, T, C, X): the ensemble's, on *calibration* samples. The width a reference without
    any knowledge of where the error is would take; see `best_constant_width` for a harder one.
    """
    return (mean.double() - truth.double()).square().flatten(3).mean(dim=(0, 3)).sqrt()


def best_constant_width(mean: Tensor, truth: Tensor) -> Tensor:
    """Width (T, C) of the Gaussian about the mean with the lowest mean CRPS on these samples.

    The root of mean_{b, x} sqrt(2) exp(-(mean - y)^2 / (2 w^2)) = 1, by bisection (the CRPS is
    convex in w, so it is the only one). Equals the rms for Gaussian errors and is narrower for
    heavy-tailed ones, where an ensemble of constant width but narrower than the rms would
    otherwise pass for skill.
    """
    squares = (mean.double() - truth.double()).square().flatten(3)
    high = squares.mean(dim=(0, 3)).sqrt() / math.sqrt(math.log(2))
    low = torch.zeros_like(high)
    for _ in range(40):
        middle = (low + high) / 2
        share = torch.exp(-squares / (2 * middle.square())[None, :, :, None]).mean(dim=(0, 3))
        wide = share * math.sqrt(2) > 1
        low, high = torch.where(wide, low, middle), torch.where(wide, middle, high)
    return (low + high) / 2


def crps_constant_frames(ensemble: Tensor, truth: Tensor, width: Tensor) -> Tensor:
    """CRPS of the reference of `crps_skill`, per sample and lead time, (B, T); width (T, C).

    sqrt(M / (M + 1)) CRPS(N(ensemble mean, w^2), y). The factor takes out what the mean of M
    members errs more than the mean of infinitely many (the (M + 1) / M of `spread_skill`):
    the ensemble is scored as if infinite, and without it a constant-width ensemble would show a
    skill of 1 / (2 M). Exact for Gaussian errors and spread_skill 1; where members share an
    exact mean it makes the reference that much harder.
    """
    if width.shape != truth.shape[1:3]:
        raise ValueError(f"width {tuple(width.shape)} is not one per lead time and channel")
    members, start, parts = ensemble.shape[1], 0, []
    for values, true in frames_at_once(ensemble, truth):
        rows = width[start : start + true.shape[1]].to(true)
        rows = rows.reshape(*rows.shape, *[1] * (true.ndim - 3))
        parts.append(crps_gaussian(values.mean(dim=1), rows, true).flatten(2).mean(dim=2))
        start += true.shape[1]
    return math.sqrt(members / (members + 1)) * torch.cat(parts, dim=1)


def crps_skill(crps: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 - mean_b crps / mean_b reference: the gain over a Gaussian of constant width.

    crps from `crps_fair` (or `crps_frames`), reference from `crps_constant_frames`, reduced
    alike: (B,) gives a scalar, (B, T) one value per lead time; under weights (S, B) with S in
    front. Range (-inf, 1], higher is better. Above 0 the spread knows where and when the mean
    errs; against `best_constant_width` ensembles of constant width score at most 0 from M = 16
    (measured: -.4 % at 32), against `constant_width` up to 2 % where errors are heavy-tailed.
    Bias: with heavy tails and M = 4 they reach 3 %; frames with large errors weigh most.
    Source: Gneiting & Raftery 2007, skill score.
    """
    return 1 - pooled(crps, weights) / pooled(reference, weights)


# ---------------------------------------------------------------- spread


def spread_and_error(ensemble: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(M + 1) / M mean_x var(members) and mean_x (ensemble mean - y)^2, over (C, X): each (B, T).

    Unbiased variance (M - 1). In the square of the field's unit; equal in expectation where
    the truth is exchangeable with the members. Source: Fortin et al. 2014.
    """
    factor = (ensemble.shape[1] + 1) / ensemble.shape[1]
    spread, error = [], []
    for members, true in frames_at_once(ensemble, truth):
        variance, mean = torch.var_mean(members, dim=1)
        spread.append(factor * variance.flatten(2).mean(dim=2))
        error.append((mean - true).square().flatten(2).mean(dim=2))
    return torch.cat(spread, dim=1), torch.cat(error, dim=1)


def spread_skill(spread: Tensor, error: Tensor, weights: Tensor | None = None) -> Tensor:
    """sqrt((M + 1) / M mean variance) / rmse of the mean; squares pooled before the root.

    Arguments from `spread_and_error`, pooled over samples: (B, T) gives one value per lead time,
    (B,) (after .mean(1)) the pooled scalar; under weights (S, B) with S in front. Range
    [0, inf], 1 is right, below is overconfident. Bias: frames with large errors weigh most; 1
    on average hides errors that cancel: read it in bins too. Source: Fortin et al. 2014.
    """
    return (pooled(spread, weights) / pooled(error, weights)).sqrt()


def spread_halves(ensemble: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variance of the first and of the second half of the members, squared error of the mean.

    Each (B, T, C, X), at every point: what `bin_spread` sorts and counts. Needs 4 members.
    """
    half = ensemble.shape[1] // 2
    if half < 2:
        raise ValueError(f"bins of the spread need at least 4 members, got {ensemble.shape[1]}")
    parts: list[list[Tensor]] = [[], [], []]
    for members, true in frames_at_once(ensemble, truth):
        first, second = members[:, :half].var(dim=1), members[:, half:].var(dim=1)
        for part, values in zip(parts, (first, second, (members.mean(dim=1) - true).square()), strict=True):
            part.append(values)
    first, second, squares = (torch.cat(part, dim=1) for part in parts)
    return first, second, squares


def bin_spread(
    first: Tensor, second: Tensor, squares: Tensor, *, members: int, bins: int
) -> tuple[Tensor, Tensor]:
    """A sample's share of (M + 1) / M variance and of squared error in each bin, both (B, bins).

    Arguments from `spread_halves`. Bins of equal count over all points (B, T, C, X) by predicted
    spread, quiet to wide. The spread that sorts a point is that of one half of the members, the
    variance counted there is the other half's, and again with the halves exchanged: sorted by its
    own noise a perfect ensemble of 32 would run from .8 to 1.2. Members must be independent (no
    antithetic pairs). Samples with a value that is not finite are NaN in every bin: where they
    belong is unknown.
    """
    one, two, squares = (values.double().flatten(1) for values in (first, second, squares))
    spread = torch.zeros(len(one), bins, dtype=torch.float64, device=one.device)
    error = torch.zeros_like(spread)
    places = torch.arange(one.numel(), device=one.device) * bins // one.numel()
    for sorter, counted in ((one, two), (two, one)):
        index = torch.empty_like(places)
        index[sorter.flatten().argsort(stable=True)] = places
        index = index.reshape(one.shape)
        spread.scatter_add_(1, index, (members + 1) / members * counted)
        error.scatter_add_(1, index, squares)
    broken = ~torch.isfinite(one + two + squares).all(dim=1, keepdim=True)
    return spread.masked_fill(broken, torch.nan), error.masked_fill(broken, torch.nan)


def spread_bins(ensemble: Tensor, truth: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """`bin_spread` of an ensemble that is all in memory, both (B, bins)."""
    return bin_spread(*spread_halves(ensemble, truth), members=ensemble.shape[1], bins=bins)


def spread_skill_binned(ensemble: Tensor, truth: Tensor, bins: int, weights: Tensor | None = None) -> Tensor:
    """`spread_skill` in bins of equal count by predicted spread, quiet to wide: (bins,) or (S, bins).

    1 in every bin is right; rising through 1 is a spread that varies more than the error does,
    all of it for a constant error; falling, one that varies too little. See `spread_bins`.
    """
    return spread_skill(*spread_bins(ensemble, truth, bins), weights)


def _sharpness_depth(members: int) -> int:
    """k of the interval [x_(k), x_(M + 1 - k)] whose level is nearest to 90 %; a tie takes the wider."""
    return min(
        range(1, members // 2 + 1),
        key=lambda k: abs((members + 1 - 2 * k) / (members + 1) - SHARPNESS_LEVEL),
    )


def sharpness_frames(ensemble: Tensor, truth: Tensor, *, ordered: bool = False) -> Tensor:
    """`sharpness` per lead time, (B, T). ordered: the members of each point ascend already."""
    members, total = ensemble.shape[1], []
    for values, true in frames_at_once(ensemble, truth):
        k = _sharpness_depth(members)
        rising = values if ordered else values.sort(dim=1).values
        width = (rising[:, members - k] - rising[:, k - 1]).masked_fill(
            broken_points(values, true), torch.nan
        )
        total.append(width.flatten(2).mean(dim=2))
    scale = truth.double().flatten(1).square().mean(dim=1).sqrt()
    return torch.cat(total, dim=1) / scale[:, None]


def sharpness(ensemble: Tensor, truth: Tensor) -> Tensor:
    """mean (x_(M + 1 - k) - x_(k)) / rms(y) over frames, channels and points: (B,).

    The interval whose level (M + 1 - 2k) / (M + 1) is nearest to 90 %: 29/33 = 88 % at M = 32,
    3/5 at M = 4, so compare only equal M. Range [0, inf); lower is better *at equal ece*.
    NaN or inf where the truth is zero throughout. Source: Gneiting et al. 2007.
    """
    return sharpness_frames(ensemble, truth).mean(dim=1)
