"""Every exception of the package, grouped by who can cure it.

`exit_code` is what the command line answers: 2 where the request itself was wrong
(the user mends it), 1 where a well-formed request failed while it was carried out.
"""

from __future__ import annotations

from collections.abc import Sequence


class UsimError(Exception):
    """Base of all errors this package raises on purpose."""

    exit_code = 1


class UserError(UsimError):
    """The request is wrong: what was given, what is allowed, how to mend it."""

    exit_code = 2


class ConfigurationError(UserError):
    """A configuration or plan with one or more faults, all reported at once."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{source}: {len(self.faults)} fault(s)\n{lines}")


class DataError(UsimError):
    """A data file is missing, damaged, of another shape, equation or range."""


class BrokenEnsembleError(DataError):
    """Members of an ensemble are not finite on calibration data: the model stays uncalibrated."""


class LeakageError(DataError):
    """The same initial condition appears in two splits."""


class IntegrityError(UsimError):
    """A checkpoint, record or journal does not match its own checksum or hash."""


class TrainingError(UsimError):
    """Training could not go on."""


class DivergenceError(TrainingError):
    """Loss or weights became non-finite, or the loss exploded."""


class MemoryExhaustedError(TrainingError):
    """The machine or its accelerator has no memory left for a training step."""


class RewardError(UsimError):
    """A reward of test-time compute is not finite; the message names it, by which healing finds it."""

    def __init__(self, reward: str, detail: str) -> None:
        self.reward = reward
        super().__init__(
            f"reward {reward!r} is not finite ({detail}); lower ttc.reward_weights.{reward}, or set it to 0"
        )


class ExecutorError(UsimError):
    """A run could not be started, watched or ended."""


class UnreachableError(ExecutorError):
    """Where a job runs does not answer: it may be at work or gone, so nothing may be concluded."""


class BudgetError(UsimError):
    """A ceiling of the plan is reached, or would be crossed."""


class SweepLockedError(UsimError):
    """Another driver holds this sweep folder."""
