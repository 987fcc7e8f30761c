"""Capital letters on a grid of 7 rows and 5 columns, with a column between two letters."""

from __future__ import annotations

import string

import numpy as np
from jaxtyping import Float

ROWS, COLUMNS = 7, 5
STEP = COLUMNS + 1  # columns from one letter to the next

_A_TO_M_AND_N_TO_Z = """
    .###. ####. .###. ###.. ##### ##### .###. #...# .###. ..### #...# #.... #...#
    #...# #...# #...# #..#. #.... #.... #...# #...# ..#.. ...#. #..#. #.... ##.##
    #...# #...# #.... #...# #.... #.... #.... #...# ..#.. ...#. #.#.. #.... #.#.#
    ##### ####. #.... #...# ####. ####. #.### ##### ..#.. ...#. ##... #.... #.#.#
    #...# #...# #.... #...# #.... #.... #...# #...# ..#.. ...#. #.#.. #.... #...#
    #...# #...# #...# #..#. #.... #.... #...# #...# ..#.. #..#. #..#. #.... #...#
    #...# ####. .###. ###.. ##### #.... .###. #...# .###. .##.. #...# ##### #...#

    #...# .###. ####. .###. ####. .#### ##### #...# #...# #...# #...# #...# #####
    ##..# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# #...# #...# ....#
    ##..# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# .#.#. .#.#. ...#.
    #.#.# #...# ####. #...# ####. .###. ..#.. #...# #...# #.#.# ..#.. ..#.. ..#..
    #..## #...# #.... #.#.# #.#.. ....# ..#.. #...# #...# #.#.# .#.#. ..#.. .#...
    #..## #...# #.... #..#. #..#. ....# ..#.. #...# .#.#. ##.## #...# ..#.. #....
    #...# .###. #.... .##.# #...# ####. ..#.. .###. ..#.. #...# #...# ..#.. #####
"""


def _glyphs() -> Float[np.ndarray, "26 7 5"]:
    rows = np.array(
        [[c == "#" for c in line[4:]] for line in _A_TO_M_AND_N_TO_Z.split("\n") if line]
    )
    banks = np.pad(rows, ((0, 0), (0, 1))).reshape(2, ROWS, -1, STEP)  # bank, row, letter, column
    return banks.transpose(0, 2, 1, 3).reshape(-1, ROWS, STEP)[..., :COLUMNS].astype(float)


GLYPHS = dict(zip(string.ascii_uppercase, _glyphs(), strict=True))


def written(word: str) -> Float[np.ndarray, "7 m"]:
    """The word as ink, 1 or 0, on ``6 n - 1`` columns for its ``n`` letters."""
    return np.hstack([np.pad(GLYPHS[letter], ((0, 0), (0, 1))) for letter in word])[:, :-1]
