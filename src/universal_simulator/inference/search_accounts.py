"""What a search did: every decision as it is told to an observer, and the account of what was spent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from universal_simulator.inference.directions import Directions
from universal_simulator.inference.operations import Prices
from universal_simulator.inference.rewards import Question


@dataclass(frozen=True)
class Decision:
    """One pass over candidates: cost (b, n), weights (b, n), answer (b, C, X), of the samples `rows`.

    step: rollout steps done where it was taken, in the model's own steps. directions: what a regressed
    answer was moved along.
    """

    step: int
    index: int
    rows: Tensor
    names: tuple[str, ...]
    question: Question
    cost: Tensor
    weights: Tensor
    answer: Tensor
    directions: Directions | None = None


@dataclass
class Accounts:
    """Per sample (B,): model evaluations beyond the plain rollout; of these corrector evaluations, for
    `ends` corrected ends; candidates the reward scored, in so many questions; candidates dropped because they were not
    finite, and regressed answers that were not; finite candidates whose reward was not. acts (B, S): who acted in which segment."""

    evaluations: Tensor
    corrector_evaluations: Tensor
    ends: Tensor
    reward_evaluations: Tensor
    questions: Tensor
    dropped: Tensor
    reward_nans: Tensor
    acts: Tensor

    @classmethod
    def zero(cls, size: int, segments: int = 0) -> Accounts:
        zero = [torch.zeros(size, dtype=torch.long) for _ in range(7)]
        acts = torch.zeros(size, segments, dtype=torch.bool)
        return cls(zero[0], zero[1], zero[2], zero[3], zero[4], zero[5], zero[6], acts)

    @property
    def acted(self) -> Tensor:
        """Segments acted on."""
        return self.acts.sum(dim=1)

    def operations(self, prices: Prices) -> Tensor:
        """Everything beyond the plain rollout, in operator steps (B,)."""
        steps = (self.evaluations - self.corrector_evaluations).double()
        asked = prices.question * self.questions + prices.candidate * self.reward_evaluations
        return steps + prices.corrected_end * self.ends + asked
