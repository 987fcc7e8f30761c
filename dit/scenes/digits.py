"""Handwritten digits: 1,797 real 8 x 8 scans that ship with scikit-learn.

The UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin & Kaynak 1998).
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, UInt8

from dit.config import package_files

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 8  # pixels
EVERY = 6  # of so many scans one is held out, where they are actors of a film
FULL = 12  # of 16 counts: ink that covers


@functools.cache
def read() -> tuple[UInt8[np.ndarray, "n 64"], UInt8[np.ndarray, " n"]]:
    """``(images, labels)``: counts (1797, 64) from 0 to 16, and classes, from scikit-learn's file.

    The file is read without importing the library, which would add 1.5 s to every start.
    """
    missing = "the digits come with scikit-learn, which is not installed: pip install it"
    file = package_files("sklearn", missing) / "datasets/data/digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return rows[:, :-1], rows[:, -1]


@functools.cache
def scans(word: str, held_out: bool = False) -> Float[np.ndarray, "n 8 8"]:
    """The ink, in [0, 1], of all scans of a digit, or of those of them that are held out."""
    images, labels = read()
    own = (labels == WORDS.index(word)) & ((np.arange(len(labels)) % EVERY == 0) == held_out)
    return np.minimum(images[own].reshape(-1, SIDE, SIDE) / FULL, 1.0)
