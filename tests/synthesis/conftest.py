"""Smooth pictures shared by the task tests."""

import numpy as np
import pytest
from scipy import ndimage

SIZE = (64, 48)


@pytest.fixture(scope="session")
def pairs():
    """Targets and sources (4, 64, 48, 2) in [0, 1], and foregrounds (4, 64, 48, 1)."""
    noise = np.random.default_rng(0).random((8, *SIZE, 2))
    noise = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 0))
    images = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
    row, column = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (row - 30) ** 2 + (column - 26) ** 2 < 15**2
    return images[:4], images[4:], np.broadcast_to(disc[None, ..., None], (4, *SIZE, 1))
