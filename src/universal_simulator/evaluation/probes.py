"""Questions beside the rollout: one true step, the codec's floor, the seam of the domain."""

from __future__ import annotations

from torch import Tensor

from universal_simulator.data.batch import Trajectories
from universal_simulator.errors import UserError
from universal_simulator.evaluation import accuracy, conservation
from universal_simulator.evaluation.contract import FieldPredictor
from universal_simulator.physics.domain import BoundaryCondition

#: every k-th frame of the truth is reconstructed and stepped from; the first is among them
PROBE_STRIDE = 10
#: offset of boundary queries in cells: above float32 round-off of a difference, below the curvature
SEAM_OFFSET = 0.25


def probe(predictor: FieldPredictor, batch: Trajectories) -> dict[str, Tensor]:
    """nrmse_step, reconstruction and, where a boundary is declared, its violation; (B,) each."""
    sources = batch.fields[:, :-1:PROBE_STRIDE]
    following = batch.fields[:, 1::PROBE_STRIDE][:, : sources.shape[1]]
    size, count = sources.shape[:2]
    flat, parameters = sources.flatten(0, 1), batch.parameters.repeat_interleave(count, 0)
    out = {}
    for name, values, target in (
        ("nrmse_step", predictor.step(flat, parameters), following),
        ("reconstruction", predictor.reconstruct(flat, parameters), sources),
    ):
        if values.shape != flat.shape:
            raise UserError(
                f"{name}: the predictor answered {tuple(values.shape)}, expected {tuple(flat.shape)}"
            )
        rows = values.unflatten(0, (size, count)).to(target)
        error, valid, _ = accuracy.nrmse_frames(rows, target, batch.fields[:, 0])
        out[name] = accuracy.mean_valid(error, valid, dims=(1, 2))
    if batch.equation.boundary is BoundaryCondition.PERIODIC:
        out |= _boundary(predictor, batch)
    return out


def _boundary(predictor: FieldPredictor, batch: Trajectories) -> dict[str, Tensor]:
    """After one step from the given frame: the decoder's own seam, or the grid's where it has none."""
    initial, distance = batch.fields[:, 0], SEAM_OFFSET * batch.grid.spacing[0]
    query = getattr(predictor, "boundary_query", None)
    seam = None if query is None else query(initial, batch.parameters, distance)
    if seam is None:
        jumps = conservation.grid_seam_jumps(predictor.step(initial, batch.parameters), batch.grid)
    else:
        if seam.shape != (*initial.shape[:2], 6):
            raise UserError(f"boundary_query answered {tuple(seam.shape)}, expected (B, C, 6)")
        jumps = conservation.seam_jumps(seam, distance)
    return conservation.boundary_violation(*jumps, initial, batch.grid)
