"""What is asked of a predictor: which frames of which groups on which grid.

`rollout` (headline): from one frame autoregressively to the end of the trajectory.
`pdebench`: 256 points, every 5th frame (41 of 201), frames 10-40 predicted. A model that
needs one frame only starts from frame 9, that is frame 45 of the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from universal_simulator.data.batch import Trajectories
from universal_simulator.errors import UserError
from universal_simulator.run_record import Protocol, content_hash


@dataclass(frozen=True)
class FrameChoice:
    """Frame k of a rollout is frame first_frame + k time_stride of the file; k = 0 is given.

    num_frames counts the given one; None: to the end of the trajectory. points: every n-th
    cell of the file so that this many stay; None: all.
    """

    name: str
    first_frame: int
    time_stride: int
    num_frames: int | None = None
    points: int | None = None


PDEBENCH = FrameChoice("pdebench", first_frame=45, time_stride=5, num_frames=32, points=256)


def rollout_frames(*, time_stride: int, first_frame: int = 0, steps: int | None = None) -> FrameChoice:
    """The headline protocol: one frame in, `steps` steps out (None: to the end)."""
    return FrameChoice("rollout", first_frame, time_stride, None if steps is None else steps + 1)


def groups_hash(truth: Trajectories) -> str:
    """Identity of the trajectories' initial conditions in their order."""
    return content_hash(list(truth.groups))


def protocol_of(frames: FrameChoice, truth: Trajectories, *, dataset_identity: str, split: str) -> Protocol:
    """The document that every row of this truth carries."""
    protocol = Protocol(
        name=frames.name,
        dataset_identity=dataset_identity,
        split=split,
        first_frame=frames.first_frame,
        time_stride=frames.time_stride,
        steps=truth.fields.shape[1] - 1,
        points=truth.grid.points[0],
        num_groups=len(set(truth.groups)),
        groups_hash=groups_hash(truth),
    )
    if frames.points not in (None, protocol.points) or frames.num_frames not in (None, protocol.steps + 1):
        raise UserError(
            f"protocol {frames.name!r} asks for {frames.num_frames} frames on {frames.points} points, "
            f"the truth holds {protocol.steps + 1} on {protocol.points}"
        )
    return protocol


def mismatch(protocol: Protocol, truth: Trajectories) -> str | None:
    """Why these trajectories are not what the protocol names, or None."""
    if protocol.steps != truth.fields.shape[1] - 1 or protocol.points != truth.grid.points[0]:
        return (
            f"protocol {protocol.name!r} is {protocol.steps} steps on {protocol.points} points, the truth "
            f"holds {truth.fields.shape[1] - 1} on {truth.grid.points[0]}"
        )
    if protocol.groups_hash != groups_hash(truth):
        return f"protocol {protocol.name!r} names other initial conditions than the truth holds"
    return None
