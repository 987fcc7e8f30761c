"""Small models for sweeps whose training is simulated."""

import pytest

from dit.scaling.ladder import ladder


@pytest.fixture(scope="session")
def sizes():
    """Eight DiTs on 8 x 8 x 3 images, from 3e3 to 4e5 parameters."""
    return ladder(
        (1, 8, 8, 3),
        smallest=3e3,
        largest=4e5,
        count=8,
        head_dim=16,
        aspect=16.0,
        patch=2,
        num_classes=5,
    )
