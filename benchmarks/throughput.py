"""Throughput and error side by side: surrogate, FNO and the classical solver at several resolutions.

Run by `make bench`. Ratios within one run are what counts; training is not part of it, so the
errors of the untrained members are not printed.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable

import torch

from universal_simulator.configuration import load_config
from universal_simulator.inference.rollout import rollout_fields
from universal_simulator.model.surrogate import Architecture, Surrogate
from universal_simulator.physics.domain import Grid
from universal_simulator.physics.equations import BURGERS
from universal_simulator.physics.initial_conditions import draw_sine_family
from universal_simulator.physics.reference import solve

BATCH, POINTS, STEPS = 64, 256, 100


def seconds(work: Callable[[], object]) -> float:
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def member(config: str) -> Surrogate:
    loaded = load_config(config, profile="embedded").config
    return Surrogate(
        Architecture(
            import_path=loaded.model.import_path,
            options=loaded.model.options,
            canonical_frame=loaded.model.canonical_frame,
            reencode_every=loaded.model.reencode_every,
            equation="burgers",
            field_names=("u",),
            parameter_names=("nu",),
            lengths=(1.0,),
            points=(POINTS,),
            origin=(0.0,),
            dt_s=0.02,
            time_stride=2,
            data_identity="none",
            parameter_range=((0.01, 0.1),),
        )
    ).eval()


def main() -> None:
    grid = Grid((1.0,), (POINTS,))
    family = draw_sine_family(BATCH, torch.Generator().manual_seed(0))
    initial = family(grid.coordinates())[:, None].float()
    nu = torch.full((BATCH, 1), 0.01)
    times = torch.arange(STEPS + 1, dtype=torch.float64) * 0.02
    truth = solve(BURGERS, initial, nu, times, grid, method="spectral", points=512)
    rows: dict[str, dict[str, float]] = {}
    for points in (32, 64, 128, 256):

        def run(points: int = points) -> torch.Tensor:
            return solve(BURGERS, initial, nu, times, grid, method="finite_volume", points=points)

        error = (run() - truth).square().mean(-1).sqrt() / truth.square().mean(-1).sqrt()
        rows[f"finite_volume_{points}"] = {
            "trajectories_per_s": BATCH / seconds(run),
            "nrmse": float(error[:, 1:].mean()),
        }
    for name in ("rerun_txxoc8a8", "fno_reference", "sweep_round_b_capacity_up", "sweep_aggressive_sota"):
        model = member(name)

        def roll(model: Surrogate = model) -> torch.Tensor:
            return rollout_fields(model, initial, nu, steps=STEPS)

        rows[name] = {"trajectories_per_s": BATCH / seconds(roll), "params": float(model.num_parameters())}
    host = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    print(json.dumps({"host": host, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
