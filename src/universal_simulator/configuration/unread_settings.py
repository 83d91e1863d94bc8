"""Keys of test-time compute that nothing reads because its answer is regressed (`ttc.combine: regress`).

Such an answer has no passes, no look-ahead and no weights by cost. Its candidates are those of the learned
reward's training alone, whose sets are drawn whatever the answer is: where no reward is trained, or one is
stored already, nothing reads them either. Without a threshold no reward is asked at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: of choosing among candidates
OF_CHOICE = ("ttc.steps", "ttc.horizon", "ttc.temperature")
#: of candidates, which a reward is trained on
OF_CANDIDATES = ("ttc.candidates", "ttc.tau_range", "ttc.noise_schedule")
#: of the reward, which a threshold asks
OF_REWARD = "ttc.gamma", "ttc.reward_weights."


def unread(key: str, effective: Mapping[str, Any], *, trains_reward: bool = True) -> str | None:
    """Why nothing reads `key` where the answer is regressed, or None where something does or may.

    effective: the run's config, flattened. trains_reward: False of scores on a model whose reward is stored.
    """
    if effective.get("ttc.combine") != "regress":
        return None
    if key in OF_CHOICE:
        return "the answer is regressed (ttc.combine): no pass, look-ahead or cost chooses it"
    if trains_reward and effective.get("ttc.reward_steps"):
        return None
    if key in OF_CANDIDATES:
        return "the answer is regressed (ttc.combine): it has no candidates, and no reward is trained on any"
    if key == "ttc.noise_std" and effective.get("ttc.beam", 1) > 1:
        return (
            "the answer is regressed (ttc.combine): the spread of ttc.beam partial trajectories is its unit "
            "(read only where the equation declares no symmetry)"
        )
    if key.startswith(OF_REWARD) and not effective.get("ttc.residual_threshold"):
        return "the answer is regressed (ttc.combine) and no threshold is set: no reward is asked"
    return None


def without_unread(effective: Mapping[str, Any]) -> dict[str, Any]:
    """What changes a result; `noise_std` stays, since only the equation can say that it does not."""
    return {k: v for k, v in effective.items() if k == "ttc.noise_std" or unread(k, effective) is None}
