"""How far reconstructions are from the pictures they are of: PSNR and SSIM, a number for each picture.

Both take uint8 ``(n, f, h, w, c)``; of a clip they are the mean over its frames.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from dit.types import UserError

Clips = UInt8[np.ndarray, "n f h w c"]
PEAK, MOST = 255.0, 100.0  # of a number; decibels of a picture that is equal
SIGMA, REACH = 1.5, 5  # of SSIM's window, in pixels
K1, K2 = 0.01, 0.03


def psnr(x: Clips, y: Clips) -> Float[np.ndarray, " n"]:
    """``10 log10(255^2 / mean squared error)`` in decibels, at most 100."""
    error = np.square(x.astype(np.float64) - y).mean((2, 3, 4))
    return (10 * np.log10(PEAK**2 / np.maximum(error, PEAK**2 * 10 ** (-MOST / 10)))).mean(1)


def ssim(x: Clips, y: Clips) -> Float[np.ndarray, " n"]:
    """Structural similarity (Wang et al. 2004, eq. 13), where its window is inside of the picture.

    Of each channel by itself, with population moments. UserError for sides below 11 pixels.
    """
    if min(x.shape[2:4]) < 2 * REACH + 1:
        raise UserError(
            f"got pictures of {x.shape[2]}x{x.shape[3]} for SSIM; expected 11x11 or more"
        )
    a, b = x.astype(np.float64), y.astype(np.float64)
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    cov = _blurred(a * b) - mean_a * mean_b
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    same = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    same /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return same.mean((1, 2, 3, 4))


def _blurred(x: Float[np.ndarray, "n f h w c"]) -> Float[np.ndarray, "n f h2 w2 c"]:
    from scipy.ndimage import gaussian_filter  # takes a fifth of a second, which no start should

    inside = slice(REACH, -REACH)
    window = {"sigma": (0, 0, SIGMA, SIGMA, 0), "truncate": REACH / SIGMA}
    return gaussian_filter(x, **window)[:, :, inside, inside]
