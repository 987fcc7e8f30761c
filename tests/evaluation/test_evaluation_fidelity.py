"""PSNR and SSIM against their formulas, written out."""

import numpy as np
import pytest

from dit.evaluation import fidelity
from dit.types import UserError

X = np.random.default_rng(0).integers(0, 256, (2, 1, 13, 14, 3)).astype(np.uint8)
Y = np.clip(X.astype(int) + np.random.default_rng(1).integers(-40, 40, X.shape), 0, 255)
Y = Y.astype(np.uint8)


def test_psnr_is_the_log_of_the_mean_squared_error():
    want = [
        10 * np.log10(255**2 / np.mean((a - b) ** 2.0))
        for a, b in zip(X, Y.astype(int), strict=True)
    ]
    np.testing.assert_allclose(fidelity.psnr(X, Y), want)
    off = np.full_like(X, 10)
    np.testing.assert_allclose(fidelity.psnr(off, off + 10), 10 * np.log10(255**2 / 100))
    assert (fidelity.psnr(X, X) == 100).all()


def test_ssim_is_the_mean_of_the_formula_over_windows():
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for i in range(3):
        for j in range(4):
            for c in range(3):
                a, b = (v[0, 0, i : i + 11, j : j + 11, c].astype(float) for v in (X, Y))
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                top = (2 * ma * mb + c1) * (2 * cov + c2)
                values.append(top / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    np.testing.assert_allclose(fidelity.ssim(X, Y)[0], np.mean(values), rtol=1e-9)
    np.testing.assert_allclose(fidelity.ssim(X, X), 1.0)
    with pytest.raises(UserError, match="expected 11x11"):
        fidelity.ssim(X[:, :, :8], Y[:, :, :8])
