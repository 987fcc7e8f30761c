"""Prompt adherence: do pictures of ``dit.scenes`` show what they were asked for, question by question?

    colour    every thing is of a colour asked for, and every colour asked for is there
    shape     the same of shapes;  ``word``: of the word, read letter by letter
    pair      the same of colours and shapes (or words) together: the right shape in the right colour
    size      things whose size was said have it
    count     where a number was asked for, there are so many things
    relation  two things are the ones asked for, and stand to each other as asked
    overall   exactly what was asked for is there, and nothing else

A picture answers each question that its prompt poses with yes or no.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from dit.evaluation import Real, Split
from dit.evaluation.parts import Figures, Part
from dit.evaluation.reading import Found, read
from dit.scenes.draw import UNITS
from dit.scenes.grammar import Scene, Thing, parse
from dit.types import UserError

QUESTIONS = ("colour", "shape", "word", "pair", "size", "count", "relation", "overall")
REAL = 500  # pictures that are read, of either split
Answers = Float[np.ndarray, "n 8"]


def answers(scene: Scene, found: Sequence[Found]) -> dict[str, bool]:
    """The answers of a picture in which these things were found to what ``scene`` asks."""
    asked, seen = scene.things, [one.thing for one in found]
    met = _matched(scene, found)
    said = {
        "colour": {t.colour for t in seen} == {t.colour for t in asked},
        "word" if scene.kind == "word" else "shape": {t.shape for t in seen}
        == {t.shape for t in asked},
        "pair": {t.pair for t in seen} == {t.pair for t in asked},
    }
    if any(t.size for t in asked):
        fits = (want.size in (None, one.thing.size) for one, want in met)
        said["size"] = bool(met) and all(fits)
    if scene.kind == "count":
        said["count"] = len(seen) == len(asked)
    if scene.relation:
        said["relation"] = bool(met) and _stand(scene.relation, *(one for one, _ in met))
    exact = sorted(t.pair for t in seen) == sorted(t.pair for t in asked)
    return said | {"overall": exact and all(said.values())}


def _matched(scene: Scene, found: Sequence[Found]) -> list[tuple[Found, Thing]]:
    """The things found with those that they should be; none where it is not clear which is which."""
    if not scene.relation:
        return [(one, scene.things[0]) for one in found]
    ways = [list(zip(two, scene.things, strict=True)) for two in itertools.permutations(found, 2)]
    alike = [
        sum((f.thing.colour == t.colour) + (f.thing.shape == t.shape) for f, t in way)
        for way in ways
    ]
    best = max(alike, default=0)
    return ways[alike.index(best)] if alike.count(best) == 1 else []


def _stand(relation: str, first: Found, second: Found) -> bool:
    """Whether the first stands to the second in this relation, more than in any other."""
    down, right = (b - a for a, b in zip(first.middle, second.middle, strict=True))
    along, across = (right, down) if relation == "left of" else (down, right)
    return along > abs(across)


def score(
    prompts: Sequence[str], pictures: Sequence[UInt8[np.ndarray, "h w 3"]]
) -> dict[str, float]:
    """How well each picture shows what its prompt asks for.

    The share of right answers to every question that some prompt poses and, ending in ``_low`` and
    ``_high``, between what the true share lies with 95% confidence. The same ending in ``_seen`` of
    prompts whose pairs all occur in training, and in ``_unseen`` of the others. Raises UserError for a
    prompt that ``grammar.parse`` does not know.
    """
    scenes = [parse(prompt) for prompt in prompts]
    return _shares(scenes, _table(scenes, [read(x) for x in pictures]))


def asked(prompts: Sequence[str]) -> tuple[str, ...]:
    """The names of the figures that ``score`` has of these prompts; UserError as there."""
    scenes = [parse(prompt) for prompt in prompts]
    return tuple(_shares(scenes, _table(scenes, [()] * len(scenes))))


def chance(
    prompts: Sequence[str], pictures: Sequence[UInt8[np.ndarray, "h w 3"]], ways: int = 20
) -> dict[str, float]:
    """The share of right answers of as many pictures that have nothing to do with the prompts.

    The mean over several ``ways`` of giving each picture a prompt.
    """
    scenes, found = [parse(prompt) for prompt in prompts], [read(x) for x in pictures]
    starts = sorted({i * len(found) // ways for i in range(ways)})
    tables = [_table(scenes, found[k:] + found[:k]) for k in starts]
    shares = _shares(scenes * len(starts), np.concatenate(tables))
    return {question: shares[question] for question in QUESTIONS if question in shares}


def _table(scenes: Sequence[Scene], found: Sequence[tuple[Found, ...]]) -> Answers:
    """The answers to the ``QUESTIONS``: 1 for yes, 0 for no, NaN where a scene does not ask."""
    rows = [answers(scene, one) for scene, one in zip(scenes, found, strict=True)]
    given = [[row.get(question, np.nan) for question in QUESTIONS] for row in rows]
    return np.array(given, float).reshape(-1, len(QUESTIONS))


def _shares(scenes: Sequence[Scene], given: Answers) -> dict[str, float]:
    """The figures of ``score``."""
    unseen = np.array([scene.unseen for scene in scenes], bool)
    figures = {}
    for question, column in zip(QUESTIONS, given.T, strict=True):
        for end, of in (("", np.ones_like(unseen)), ("_seen", ~unseen), ("_unseen", unseen)):
            yes = column[of & ~np.isnan(column)]
            if len(yes):
                low, high = interval(int(yes.sum()), len(yes))
                values = (("", float(yes.mean())), ("_low", low), ("_high", high))
                figures |= {f"{question}{end}{bound}": value for bound, value in values}
    return figures


def interval(yes: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Between what the true share lies, with 95% confidence for this ``z`` (Wilson 1927)."""
    share, square = yes / asked, z * z / asked
    middle = (share + square / 2) / (1 + square)
    half = z * np.sqrt((share * (1 - share) + square / 4) / asked) / (1 + square)
    return float(middle - half), float(middle + half)


def parts(source: Real, captions: Sequence[str], asked_of: Split) -> tuple[Part, ...]:
    """What is measured of samples whose prompts were the ``captions`` of a split's first examples.

    The figures of ``score``; those ending in ``_real`` are of these real pictures themselves, and
    those in ``_chance`` of training pictures under these prompts: what a model scores that draws the
    data and does not read. No part where the captions are no sentences of ``dit.scenes``.
    """
    few = captions[:REAL]
    try:
        names, names_of_few = asked(captions), asked(few)
    except UserError:
        return ()
    if not names or min(source.shape[1:3]) < UNITS or source.shape[3] != 3:
        return ()
    repeated = [captions[i % len(captions)] for i in range(REAL)]
    real = [f"{question}_real" for question in QUESTIONS if question in names_of_few]
    free = [f"{question}_chance" for question in QUESTIONS if question in names]

    def measure(samples: UInt8[np.ndarray, "n f h w 3"], labels: np.ndarray | None) -> Figures:
        theirs = [asked_of[i % len(asked_of)]["x"][0] for i in range(len(few))]
        train = [source.train[i % len(source.train)]["x"][0] for i in range(REAL)]
        found = score(captions, [x[0] for x in samples])
        found |= {f"{k}_real": v for k, v in score(few, theirs).items()}
        return found | {f"{k}_chance": v for k, v in chance(repeated, train).items()}

    return (Part(dict.fromkeys((*names, *real, *free), ""), measure),)
