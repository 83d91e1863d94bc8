"""Floating-point operations of a call, counted on as little of it as tells them all.

The counter sees every operation in Python, a fraction of a millisecond each: on a rollout of a hundred
steps that is seconds. But operations are linear in the batch, and a rollout is segments alike:

    operations(B) = one + (B - 1) (two - one),    one, two: of a batch of 1 and of 2
    operations(T) = (T div K) operations(K) + operations(T mod K),    K steps between two encodings
"""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def operations(call: Callable[[int], object], size: int) -> float:
    """Of call(size), a call about `size` samples; what a batch shares is counted once."""
    one = _counted(call, 1)
    return one if size == 1 else one + (size - 1) * (_counted(call, 2) - one)


def rollout_operations(
    call: Callable[[int, int], object], *, size: int, steps: int, segment: int | None
) -> float:
    """Of call(size, steps), a rollout that is encoded anew every `segment` steps (None: never)."""
    whole, rest = divmod(steps, segment or steps)
    parts = [(whole, segment or steps), (1, rest)]
    return sum(
        times * operations(lambda count, length=length: call(count, length), size)  # type: ignore[misc] # mypy gives a bound default no type
        for times, length in parts
        if times and length
    )


def _counted(call: Callable[[int], object], size: int) -> float:
    with FlopCounterMode(display=False) as counter:
        call(size)
    return float(counter.get_total_flops())
