"""Floating-point operations of a call, counted on as little of it as tells them all.

The counter sees every operation in Python: on a rollout of a hundred steps that is seconds. But
operations are linear in the batch, and a rollout is segments alike:

    operations(B) = one + (B - 1) (two - one),    one, two: of a batch of 1 and of 2
    operations(T) = (T div K) operations(K) + operations(T mod K),    K steps between two encodings
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

#: operations known not to be made of others, by what was met so far
_ELEMENTARY: Final[set[OpOverload]] = set()
#: products of two tensors that inference mode hands over whole, each element of the result a sum of
#: products along the first one's last axis
_PRODUCTS: Final = frozenset({torch.ops.aten.linear.default, torch.ops.aten.matmul.default})


class OperationCounter(TorchDispatchMode):
    """Counts what torch's `FlopCounterMode` counts (its formulas: matrix products, convolutions, attention).

    That one also keeps a table by module, at 49 microseconds an operation against 15 here (4 uncounted). Not to be
    entered twice at a time.

        with OperationCounter() as counter:
            model(x).sum().backward()
        counter.total
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        words = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # a branch (torch.cond): rare, and counted by its own rules
            with FlopCounterMode(display=False) as whole:
                result = func(*args, **words)
            self.total += whole.get_total_flops()
            return result
        assert isinstance(func, OpOverload)
        if func in _PRODUCTS and args[0].dim() > 1 < args[1].dim():
            result = func(*args, **words)
            self.total += 2 * result.numel() * args[0].shape[-1]
            return result
        if func not in _ELEMENTARY:
            with self:
                result = func.decompose(*args, **words)
            if result is not NotImplemented:
                return result
            _ELEMENTARY.add(func)
        result = func(*args, **words)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **words, out_val=result)
        return result


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
    with OperationCounter() as counter:
        call(size)
    return float(counter.total)
