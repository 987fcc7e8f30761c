"""Random colours: what they keep of a picture, and that nothing else changes."""

import numpy as np

from dit.data.transforms import random_colors


def test_random_colors_permute_channels_and_bend_each_by_a_power():
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    x[0, 0, 0], x[0, 0, 1] = 0, 255
    orders, powers = set(), []
    for seed in range(200):
        example = random_colors({"x": x, "label": 3}, np.random.default_rng(seed))
        assert example.keys() == {"x", "label"}
        assert example["label"] == 3
        y = example["x"]
        assert y.dtype == np.uint8
        assert y.shape == x.shape
        assert not y[0, 0, 0].any()
        assert (y[0, 0, 1] == 255).all()
        order = []
        for channel in y.reshape(-1, 3).T.astype(int):
            # ranks are kept in a channel (values may merge), so exactly one of the old ones fits
            fits = [c for c in range(3) if _rises(x.reshape(-1, 3)[:, c], channel)]
            assert len(fits) == 1
            order += fits
            inner = (channel > 20) & (channel < 235)
            old = x.reshape(-1, 3)[inner, fits[0]] / 255
            powers.append(np.median(np.log(channel[inner] / 255) / np.log(old)))
        orders.add(tuple(order))
    assert len(orders) == 6
    assert 0.66 < min(powers) < 0.72
    assert 1.4 < max(powers) < 1.51


def _rises(old, new):
    return (np.diff(new[np.argsort(old, kind="stable")]) >= 0).all()
