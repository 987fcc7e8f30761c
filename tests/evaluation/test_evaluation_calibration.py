"""Each score moves for what it should see, and for nothing else: a small run of ``calibration.py``."""

import pytest
from calibration import FIGURES, emoji_pictures, markdown, moved, quick, table

from dit.config import resolve

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimised")]
SEEN = {  # of each case the figures that must move, and those that must not
    "noise": ({"fd": 1, "kd": 1, "precision": -1, "recall": -1}, {"copies"}),
    "blur": ({"fd": 1, "kd": 1, "precision": -1}, {"copies"}),
    "JPEG, quality 10": ({"kd": 1}, {"recall", "copies"}),
    "each tenth picture, ten times": ({"fd": 1, "kd": 1, "recall": -1}, {"precision", "copies"}),
    "one class dropped": ({}, {"precision", "copies"}),
    "copies of training pictures": ({"copies": 1, "fd": -1, "precision": 1}, set()),
}


def test_every_score_moves_for_what_it_should_see_and_for_nothing_else():
    network = quick(resolve("evaluation.features", "efficientnet_lite0"))
    cases = table(emoji_pictures(limit=260), network)
    signs = moved(cases)
    assert set(cases) == {"new real pictures", *SEEN}
    for case, (must, must_not) in SEEN.items():
        assert {name: signs[case][name] for name in must} == must, case
        assert {name: signs[case][name] for name in must_not} == dict.fromkeys(must_not, 0), case
    text = markdown(cases)
    assert len(text.splitlines()) == 2 + len(cases)
    assert text.count("|") == (2 + len(cases)) * (2 + len(FIGURES))
