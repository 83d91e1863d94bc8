"""Test-time compute: more evaluations of one model for one rollout, where they are worth it.

A rollout is a chain of segments between two encodings. Per sample, P = `beam` partial trajectories
live from segment to segment, each rolled out in a representation of its own (an exact symmetry of
the equation); their mean is better than each, because the model's errors in them are partly
independent. At the end of a segment, candidates about them (`inference/candidates.py`) are scored
per sample (`inference/rewards.py`) and combined,

    answer = sum_i w_i c_i,   w_i ~ cost_i^(-1/temperature)      or the candidate that costs least,

and the partial trajectories go on from ends_b + guidance_lambda (answer - mean of ends) (combine:
average) or from the P candidates that cost least (pick). A third way (regress) asks no reward about
candidates: the answer is the mean moved along its directions by weights fitted to the state
(`model/combination.py`). Within the segment the frames are the mean of the partial trajectories,
moved to the answer in proportion to time.

It acts on a sample while its `max_evaluations` last and only where the plain rollout's cost exceeds
`residual_threshold` times its 95th percentile in training; elsewhere the rollout goes on plainly.
Every operator step and corrector sample beyond the plain rollout is counted per sample, evaluations of
the reward beside; all add up to operations in the unit of an operator step (`inference/operations.py`).

`rewarded=False` takes the mean of the partial trajectories for the answer, without candidates, corrector
or reward, and `schedule` says who acts where in place of threshold and budget: the controls
(`inference/search_controls.py`) by which the reward is told from what its representations give alone.

Shapes: B samples (b of them acting), P partial trajectories, n candidates, K steps of a segment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from universal_simulator.configuration.schema import GuardsConfig, TTCSection
from universal_simulator.inference.candidates import (
    Representation,
    Stem,
    combination,
    first_pool,
    pass_size,
    pool_sizes,
    refined_pool,
    representations,
    spread,
)
from universal_simulator.inference.directions import directions_of
from universal_simulator.inference.ensemble import trajectory_noise
from universal_simulator.inference.operations import Prices, evaluations_per_sample, prices
from universal_simulator.inference.partial_trajectories import Rolled, corrected_ends, roll
from universal_simulator.inference.predictor import SurrogatePredictor
from universal_simulator.inference.rewards import Cost, CostFunction, Question
from universal_simulator.inference.rollout import num_segments
from universal_simulator.inference.search_accounts import Accounts, Decision
from universal_simulator.inference.search_refusals import refuse_unfitted
from universal_simulator.inference.solver_in_the_loop import ResidualCost, residual_step
from universal_simulator.model.surrogate import Surrogate


class SearchingPredictor(SurrogatePredictor):
    """A surrogate that spends more evaluations on a rollout; deterministic for its noise seed.

    cost: in place of the configured reward. observe: told of every decision. rewarded, schedule (B, S): see
    the module. fitting: a combination is being fitted, none answers yet. `accounts` are those of the last
    rollout, `evaluations_spent` and `samples_rolled` of all.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        guards: GuardsConfig,
        ttc: TTCSection,
        *,
        frame_spacing_s: float | None = None,
        noise_seed: int = 0,
        cost: CostFunction | None = None,
        observe: Callable[[Decision], None] | None = None,
        rewarded: bool = True,
        schedule: Tensor | None = None,
        fitting: bool = False,
    ) -> None:
        super().__init__(surrogate, guards, frame_spacing_s=frame_spacing_s)
        entry = surrogate.architecture.reward
        refuse_unfitted(
            surrogate, ttc, asks_threshold=cost is None and schedule is None and rewarded, fitting=fitting
        )
        self.ttc = ttc
        self.guards_config = guards
        self.frame_spacing_s = frame_spacing_s
        self.noise_seed = noise_seed
        self.observe = observe
        self.rewarded = rewarded
        self.given_cost = cost
        self.schedule = schedule
        self.threshold = 0.0 if entry is None else ttc.residual_threshold * entry.plain_p95
        self.cost: CostFunction = cost or Cost(surrogate, ttc.reward_weights, gamma=ttc.gamma)
        if ttc.solver == "residual":
            self.cost = ResidualCost(surrogate, self.cost)
        self.accounts = Accounts.zero(0)
        self.evaluations_spent, self.samples_rolled = 0.0, 0

    @functools.cached_property
    def prices(self) -> Prices:
        return prices(self.surrogate, self.cost)

    @functools.cached_property
    def views(self) -> tuple[Representation, ...]:
        """The representations of its partial trajectories: at most `beam`, as the equation allows."""
        surrogate = self.surrogate
        return representations(surrogate.equation, count=self.ttc.beam, width=surrogate.cells_per_token)

    @property
    def solver_in_the_loop(self) -> bool:
        return self.ttc.solver != "off"

    def rollout(self, initial: Tensor, parameters: Tensor, steps: int) -> Tensor:
        with torch.inference_mode():
            search = _Search(self, initial, parameters, steps * self.substeps)
            fields = search.run()
        self.accounts = search.accounts
        self.evaluations_spent += float(search.accounts.evaluations.sum())
        self.samples_rolled += len(initial)
        return fields[:, self.substeps - 1 :: self.substeps]


class _Search:
    """The state of one rollout of one batch."""

    def __init__(
        self, predictor: SearchingPredictor, initial: Tensor, parameters: Tensor, steps: int
    ) -> None:
        self.predictor = predictor
        self.surrogate = surrogate = predictor.surrogate
        self.ttc = predictor.ttc
        self.initial = initial
        self.parameters = parameters
        self.steps = steps
        self.segment = surrogate.architecture.reencode_every or steps
        self.views = predictor.views
        self.noise: Tensor | None = None
        if surrogate.corrector is not None and predictor.rewarded and self.ttc.combine != "regress":
            self.noise = trajectory_noise(
                surrogate, initial, steps, len(self.views), seed=predictor.noise_seed
            )
        segments = num_segments(surrogate, steps)
        self.schedule = predictor.schedule
        if self.schedule is not None and self.schedule.shape != (len(initial), segments):
            raise ValueError(
                f"a schedule of {len(initial)} trajectories and {segments} segments is asked, "
                f"this one has shape {tuple(self.schedule.shape)}"
            )
        self.accounts = Accounts.zero(len(initial), segments)
        self.accepted = initial
        self.beams = initial[:, None].repeat(1, len(self.views), 1, 1)
        self.drift = torch.zeros_like(initial[..., :1])
        self.wanted = torch.ones(len(initial), dtype=torch.bool, device=initial.device)

    def run(self) -> Tensor:
        starts = range(0, self.steps, self.segment)
        return torch.cat(
            [self._segment(i, s, min(self.segment, self.steps - s)) for i, s in enumerate(starts)], 1
        )

    def _segment(self, index: int, done: int, count: int) -> Tensor:
        """Frames (B, count, C, X) of the next segment, unguarded."""
        acting = self._scheduled(index, count)
        start = torch.where(acting[:, None, None], self.beams[:, 0], self.accepted)
        lead = self._roll(start[:, None], self.parameters, slice(0, 1), count)
        end = lead.fields[:, 0, -1]
        if index == 0 and self.schedule is None:
            acting &= self._residual(self.accepted, end, self.parameters, count) > self.predictor.threshold
        acting &= torch.isfinite(end).flatten(1).all(dim=1)
        frames, answer, lost = lead.fields[:, 0].clone(), end.clone(), self._lost(end)
        rows = acting.nonzero().flatten()
        beams = answer[:, None].repeat(1, len(self.views), 1, 1)
        if len(rows):
            rolled = lead.rows(rows)
            if len(self.views) > 1:
                others = self.beams[rows, 1:]
                rolled = rolled.join(self._roll(others, self.parameters[rows], slice(1, None), count))
            moved, chosen, kept, gone = self._act(rows, index, done + count, rolled)
            frames[rows], answer[rows], beams[rows], lost[rows] = moved, chosen, kept, gone
        frames = frames + self.drift[:, None]
        before, self.beams = self.accepted, beams
        self.accepted = answer
        if self._projects():
            self.accepted = self._projected(answer[:, None], slice(None))[:, 0]
            self.beams = self._projected(beams, slice(None))
            self.drift = self.drift + lost
        if self.schedule is None:
            self.wanted = (
                self._residual(before, self.accepted, self.parameters, count) > self.predictor.threshold
            )
        return frames

    def _scheduled(self, index: int, count: int) -> Tensor:
        """Who would act (B,): by the schedule, else who is above the threshold and can pay."""
        if self.schedule is not None:
            return self.schedule[:, index].to(self.wanted.device)
        left = self.ttc.max_evaluations - self.accounts.evaluations
        return self.wanted & (left >= self._price(count)).to(self.wanted.device)

    def _act(
        self, rows: Tensor, index: int, done: int, rolled: Rolled
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames, answer, partial trajectories and lost mean of the samples `rows` of this segment."""
        count = rolled.fields.shape[2]
        ends = rolled.fields[:, :, -1]
        alive = torch.isfinite(ends).flatten(2).all(dim=2)
        whole = _filled(rolled.fields, alive)
        stem_ends = self._projected(whole[:, :, -1], rows)
        corrected = None
        if self.noise is not None:
            noise = self.noise[rows][:, :, index]
            corrected = self._projected(
                corrected_ends(self.surrogate, rolled, self.views, noise, count, self.predictor.dt_s), rows
            )
        before = whole[:, :, -2].mean(1) if count > 1 else self.accepted[rows]
        stem = Stem(stem_ends, before, corrected)
        here, accounts = rows.cpu(), self.accounts
        accounts.acts[here, index] = True
        accounts.evaluations[here] += self._price(count)
        if self.noise is not None:
            accounts.corrector_evaluations[here] += self._sampled()
            accounts.ends[here] += len(self.views)
        if not self.predictor.rewarded:
            return whole.mean(dim=1), stem.mean, stem_ends, self._lost(whole[:, :, -1].mean(dim=1), rows)
        decide = self._regress if self.ttc.combine == "regress" else self._decide
        answer, pool, cost = decide(rows, done, count, stem, alive)
        shift = answer - stem.mean
        ramp = torch.arange(1, count + 1, device=answer.device).to(answer) / count
        frames = whole.mean(dim=1) + ramp[:, None, None] * shift[:, None]
        if self.ttc.combine == "pick":
            best = cost.topk(min(len(self.views), cost.shape[1]), dim=1, largest=False).indices
            beams = _filled(pool, torch.isfinite(cost))[torch.arange(len(rows))[:, None], best]
        else:
            beams = stem_ends + self.ttc.guidance_lambda * shift[:, None]
        lost = self._lost(whole[:, :, -1].mean(dim=1), rows)
        return frames, answer, beams, lost

    def _decide(
        self, rows: Tensor, done: int, count: int, stem: Stem, alive: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(answer, first pool, its cost): all passes of one segment."""
        ttc, grid = self.ttc, self.surrogate.grid
        size = self._size(stem)
        answer, first, first_cost = stem.mean, stem.ends, stem.ends[..., 0, 0]
        for index in range(ttc.steps):
            wide = size * pass_size(ttc.noise_schedule, ttc.noise_std, index)
            if index == 0:
                names, pool = first_pool(
                    stem, count=ttc.candidates, tau_range=ttc.tau_range, size=wide, grid=grid
                )
                broken = torch.full_like(stem.ends, torch.nan)
                beams = stem.ends.shape[1]
                pool[:, :beams] = torch.where(alive[..., None, None], stem.ends, broken)
                reference = names.index("mean")
            else:
                names, pool = refined_pool(answer, stem.before, count=ttc.candidates, size=wide, grid=grid)
                reference = 0
            pool = self._projected(pool, rows)
            question = self._question(self.accepted[rows], pool, self.parameters[rows], count, reference)
            cost = self._cost(question)
            self._asked(rows, 1, pool.shape[1])
            self._asked(rows, (ttc.horizon - 1) * pool.shape[1], 1)
            unscored, finite = ~torch.isfinite(cost), question.finite()
            self.accounts.dropped[rows.cpu()] += (~finite).sum(dim=1).cpu()
            self.accounts.reward_nans[rows.cpu()] += (unscored & finite).sum(dim=1).cpu()
            weights = combination(cost, ttc.combine, ttc.temperature)
            usable = torch.isfinite(cost).any(dim=1)
            found = torch.einsum(
                "bn,bncx->bcx", weights, torch.where(weights[..., None, None] > 0, pool, 0.0)
            )
            answer = torch.where(usable[:, None, None], found, answer)
            if index == 0:
                first, first_cost = pool, cost
            if self.predictor.observe is not None:
                self.predictor.observe(Decision(done, index, rows, names, question, cost, weights, answer))
        if ttc.solver == "correction":
            answer = residual_step(
                self.surrogate, stem.before, answer, self.parameters[rows], self.predictor.dt_s
            )
        return answer, first, first_cost

    def _regress(
        self, rows: Tensor, done: int, count: int, stem: Stem, alive: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mean moved along its directions; seen by an observer as one more candidate, which is chosen.

        Partial trajectories that are not finite count as dropped, and so does an answer that the mean replaces.
        """
        start, parameters = self.accepted[rows], self.parameters[rows]
        size, grid = self._size(stem), self.surrogate.grid
        found = directions_of(stem, start=start, parameters=parameters, step=done, size=size, grid=grid)
        answer = mean = stem.mean
        self.accounts.dropped[rows.cpu()] += (~alive).sum(dim=1).cpu()
        if self.surrogate.combination is not None:
            weights = self.surrogate.combination(found.features)
            moved = mean + torch.einsum("bk,bkcx->bcx", weights, found.fields)
            finite = torch.isfinite(moved).flatten(1).all(dim=1)
            answer = torch.where(finite[:, None, None], moved, mean)
            self.accounts.dropped[rows.cpu()] += (~finite).cpu()
        pool = self._projected(torch.cat([stem.ends, mean[:, None], answer[:, None]], dim=1), rows)
        names = (*(f"end{index}" for index in range(stem.ends.shape[1])), "mean", "regressed")
        chosen = torch.zeros(pool.shape[:2], device=pool.device).to(pool)
        chosen[:, -1] = 1.0
        question = self._question(start, pool, parameters, count, len(names) - 2)
        cost, answer = 2.0 - chosen, pool[:, -1]
        cost[:, : stem.ends.shape[1]] = torch.where(alive, 2.0, torch.inf)
        if self.ttc.solver == "correction":
            answer = residual_step(self.surrogate, stem.before, answer, parameters, self.predictor.dt_s)
        if self.predictor.observe is not None:
            self.predictor.observe(
                Decision(done, 0, rows, names, question, cost, chosen, answer, directions=found)
            )
        return answer, pool, cost

    def _cost(self, question: Question) -> Tensor:
        """Mean over `horizon` segments: the candidate's own, and plain ones rolled from it."""
        cost = self.predictor.cost(question)
        size, count = question.fields.shape[:2]
        fields, parameters = question.fields.flatten(0, 1), question.parameters.repeat_interleave(count, 0)
        for _ in range(self.ttc.horizon - 1):
            rolled = self._roll(fields[:, None], parameters, slice(0, 1), self.segment)
            after = rolled.fields[:, :, -1]
            seen = self._question(fields, after, parameters, self.segment, 0)
            cost = cost + self.predictor.cost(seen).reshape(size, count)
            fields = after[:, 0]
        return cost / self.ttc.horizon

    def _residual(self, start: Tensor, end: Tensor, parameters: Tensor, count: int) -> Tensor:
        """Cost (B,) of going on plainly; inf where a threshold of 0 lets everything act."""
        if self.predictor.threshold == 0 or not self.predictor.rewarded:
            return torch.full((len(start),), torch.inf, device=start.device)
        self._asked(slice(None), 1, 1)
        question = self._question(start, end[:, None], parameters, count, 0)
        return self.predictor.cost(question)[:, 0]

    def _question(
        self, start: Tensor, fields: Tensor, parameters: Tensor, count: int, reference: int
    ) -> Question:
        """fields (b, n, C, X) lie `count` steps after start (b, C, X)."""
        elapsed = start.new_full((len(start),), count * self.predictor.dt_s)
        return Question(start, fields, parameters, elapsed, reference)

    def _price(self, count: int) -> int:
        """Evaluations of one segment that is acted on, beyond the plain one."""
        views, ttc = len(self.views), self.ttc
        if not self.predictor.rewarded or ttc.combine == "regress":
            return (views - 1) * count
        sizes = pool_sizes(
            ends=views, count=ttc.candidates, corrected=self.noise is not None, passes=ttc.steps
        )
        lookahead = (ttc.horizon - 1) * self.segment * sum(sizes)
        return (views - 1) * count + lookahead + self._sampled()

    def _sampled(self) -> int:
        """Corrector evaluations of one segment that is acted on: a corrected end of each partial trajectory."""
        return 0 if self.noise is None else len(self.views) * evaluations_per_sample(self.surrogate)

    def _asked(self, rows: Tensor | slice, questions: int, candidates: int) -> None:
        """The reward was asked so many questions about so many candidates each."""
        here = rows.cpu() if isinstance(rows, Tensor) else rows
        self.accounts.questions[here] += questions
        self.accounts.reward_evaluations[here] += questions * candidates

    def _size(self, stem: Stem) -> Tensor:
        """What one unit of a direction's displacement is (B,): the spread of the partial trajectories; of
        a single one the corrector's residual, or noise_std of its fluctuation."""
        if stem.ends.shape[1] > 1:
            return spread(stem.ends)
        if stem.corrected is not None:
            return (stem.corrected - stem.ends).square().mean(dim=(1, 2, 3)).sqrt()
        return self.ttc.noise_std * stem.mean.std(dim=-1).mean(dim=-1)

    def _roll(self, fields: Tensor, parameters: Tensor, which: slice, count: int) -> Rolled:
        return roll(self.surrogate, fields, parameters, self.views[which], count, self.predictor.dt_s)

    def _projects(self) -> bool:
        return self.ttc.projection and "integral" in self.surrogate.equation.conserved

    def _projected(self, fields: Tensor, rows: Tensor | slice) -> Tensor:
        """Fields (b, n, C, X) with the mean of what the rollout started from, where that is conserved."""
        if not self._projects():
            return fields
        wanted = self.initial[rows].mean(dim=-1, keepdim=True)[:, None]
        return fields - fields.mean(dim=-1, keepdim=True) + wanted

    def _lost(self, end: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        return end.mean(dim=-1, keepdim=True) - self.initial[rows].mean(dim=-1, keepdim=True)


def _filled(values: Tensor, alive: Tensor) -> Tensor:
    """values (b, P, ...) with those not `alive` (b, P) replaced by the mean of the others."""
    mask = alive.reshape(*alive.shape, *(1 for _ in values.shape[2:]))
    total = torch.where(mask, values, 0.0).sum(dim=1, keepdim=True)
    return torch.where(mask, values, total / mask.sum(dim=1, keepdim=True).clamp_min(1))
