"""Where the bright object is in each frame of a clip, how it moves, and crops that follow it.

For clips of one bright object on a dark background, such as a drifting digit. ``FLOOR`` is subtracted
from every pixel first, because faint noise over the whole frame pulls the centroid to the middle.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

FLOOR = 16.0  # of 255
WINDOW = 10  # side of the crop: fits an 8 x 8 digit whose centroid is off its middle


def centroids(clips: UInt8[np.ndarray, "n f h w"]) -> Float[np.ndarray, "n f 2"]:
    """The centre of brightness ``(y, x)`` in pixels; for an empty frame, the middle."""
    ink = np.maximum(clips - FLOOR, 0)
    total = ink.sum((2, 3))
    places = []
    for axis, side in ((3, clips.shape[2]), (2, clips.shape[3])):
        moment = ink.sum(axis) @ np.arange(side)
        places.append(np.where(total > 0, moment / np.maximum(total, 1e-9), (side - 1) / 2))
    return np.stack(places, -1)


def motion(places: Float[np.ndarray, "n f 2"]) -> dict[str, float]:
    """Mean motion over the ``centroids`` of clips of two frames or more, in pixels a frame.

    ``displacement``: how far the centroid moves from one frame to the next, bounces included.
    ``speed``: the median step of each clip, which a few bounces do not change.
    ``wobble``: the median change of the step between frames: 0 for straight motion (and with two
    frames), about the displacement or more for an object that jumps about.
    """
    step = np.diff(places, axis=1)  # (n, f - 1, 2)
    length = np.linalg.norm(step, axis=-1)
    turn = np.linalg.norm(np.diff(step, axis=1), axis=-1)
    return {
        "displacement": float(length.mean()),
        "speed": float(np.median(length, axis=1).mean()),
        "wobble": float(np.median(turn, axis=1).mean()) if turn.shape[1] else 0.0,
    }


def recentred(frames: UInt8[np.ndarray, "n h w"]) -> Float[np.ndarray, "n s s"]:
    """``WINDOW x WINDOW`` crops around each frame's centroid, bilinear, and dark outside the frame."""
    corner = centroids(frames[:, None])[:, 0] - (WINDOW - 1) / 2  # (n, 2)
    weights = [
        _bilinear(corner[:, axis], frames.shape[1 + axis]) for axis in (0, 1)
    ]  # (n, s, h), (n, s, w)
    return weights[0] @ frames.astype(np.float64) @ weights[1].transpose(0, 2, 1)


def _bilinear(corner: np.ndarray, side: int) -> np.ndarray:
    """Weights ``(n, WINDOW, side)`` with which pixel ``corner + j`` reads its two neighbours."""
    at = corner[:, None] + np.arange(WINDOW)
    return np.maximum(0, 1 - np.abs(at[:, :, None] - np.arange(side)))
