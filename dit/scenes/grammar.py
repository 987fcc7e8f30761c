"""Scenes and the sentences that describe them: ``parse(wording) == scene`` for each of its ``wordings``.

    a small red circle                          one object; its size need not be said
    three green triangles                       two to five of a kind
    a large red star above a blue square        two objects: left of, right of, above, below
    the word CAT in white                       two to five capital letters

A colour and a shape (or a word) are a *pair*. Some pairs, by a fixed rule, are never trained on: whether
a model draws them when it is asked to shows whether it has learned what each word means by itself.
"""

from __future__ import annotations

import dataclasses
import re

from dit.types import UserError

COLOURS = {  # sRGB, in [0, 1]
    "red": (0.90, 0.15, 0.17),
    "orange": (0.97, 0.52, 0.10),
    "yellow": (0.98, 0.88, 0.22),
    "green": (0.22, 0.72, 0.30),
    "blue": (0.18, 0.40, 0.95),
    "purple": (0.58, 0.26, 0.80),
    "pink": (0.98, 0.55, 0.75),
    "white": (0.96, 0.96, 0.96),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
RELATIONS = {"left of": "right of", "above": "below"}  # and what the second is to the first
WORDS = (
    *("CAT", "DOG", "SUN", "MAP", "KEY", "BOX", "ICE", "JAM"),
    *("FOX", "OWL", "ZIP", "HAT", "VAN", "BIRD", "MOON", "TREE"),
)
KINDS = ("one", "count", "relation", "word")


@dataclasses.dataclass(frozen=True, order=True)
class Thing:
    """One thing in a picture. ``shape``: one of ``SHAPES``, or the word that it is, in capitals.

    ``size``: one of ``SIZES``, or None where nothing is said of it.
    """

    colour: str
    shape: str
    size: str | None = None

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape

    @property
    def is_word(self) -> bool:
        return self.shape.isupper()

    def __str__(self) -> str:
        said = " ".join(filter(None, (self.size, self.colour, self.shape)))
        return f"{'an' if said[0] in 'aeiou' else 'a'} {said}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a sentence says: the ``things``, and how the first of two stands to the second, if at all.

    Several things without a relation are all alike: there are so many of them. ``relation`` is a key of
    ``RELATIONS``, so what may be said from either end is one scene.
    """

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        if self.relation:
            return "relation"
        return "word" if self.things[0].is_word else "one" if len(self.things) == 1 else "count"

    @property
    def unseen(self) -> bool:
        """Whether it holds a pair that is never trained on."""
        return any(unseen(*thing.pair) for thing in self.things)


def unseen(colour: str, shape: str) -> bool:
    """The rule: each colour lacks one shape, and so do the words by their place in ``WORDS``.

    Words that are not listed are not asked for in training either, in any colour.
    """
    if shape not in (*SHAPES, *WORDS):
        return True
    place = (SHAPES if shape in SHAPES else WORDS).index(shape)
    return (list(COLOURS).index(colour) + place) % len(SHAPES) == 3


def wordings(scene: Scene) -> tuple[str, ...]:
    """All sentences that describe the scene and nothing else, the plainest first."""
    first, last = scene.things[0], scene.things[-1]
    if scene.relation:
        turned = RELATIONS[scene.relation]
        return f"{first} {scene.relation} {last}", f"{last} {turned} {first}"
    if first.is_word:
        return (
            f"the word {first.shape} in {first.colour}",
            f"{first.shape} in {first.colour} letters",
        )
    if len(scene.things) == 1:
        return (str(first),)
    number = next(word for word, n in NUMBERS.items() if n == len(scene.things))
    return (f"{number} {first.colour} {_plural(first.shape)}",)


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _any(words: object) -> str:
    return f"({'|'.join(map(str, words))})"


_THING = rf"an? (?:{_any(SIZES)} )?{_any(COLOURS)} {_any(SHAPES)}"
_SIDES = {side: (name, False) for name, side in RELATIONS.items()} | {
    name: (name, True) for name in RELATIONS
}
_ONE = re.compile(_THING)
_RELATION = re.compile(rf"{_THING} {_any(_SIDES)} {_THING}")
_COUNT = re.compile(rf"{_any(NUMBERS)} {_any(COLOURS)} {_any(map(_plural, SHAPES))}")
_WORD = re.compile(rf"the word ([A-Z]{{2,5}}) in {_any(COLOURS)}")
_LETTERS = re.compile(rf"([A-Z]{{2,5}}) in {_any(COLOURS)} letters")


def parse(sentence: str) -> Scene:
    """The scene that a sentence describes; UserError if it is none of the sentences made here."""
    text = " ".join(sentence.split())
    if found := _ONE.fullmatch(text):
        return Scene((_thing(*found.groups()),))
    if found := _RELATION.fullmatch(text):
        *first, side, size, colour, shape = found.groups()
        pair = _thing(*first), _thing(size, colour, shape)
        relation, forward = _SIDES[side]
        return Scene(pair if forward else pair[::-1], relation)
    if found := _COUNT.fullmatch(text):
        number, colour, plural = found.groups()
        shape = next(shape for shape in SHAPES if _plural(shape) == plural)
        return Scene((Thing(colour, shape),) * NUMBERS[number])
    if found := _WORD.fullmatch(text) or _LETTERS.fullmatch(text):
        word, colour = found.groups()
        return Scene((Thing(colour, word),))
    raise UserError(
        f"got the sentence {sentence!r}; expected one such as 'a small red circle', 'three green "
        "triangles', 'a red star left of a large blue square' (right of, above, below) or 'the word CAT "
        f"in white', of the colours {', '.join(COLOURS)} and the shapes {', '.join(SHAPES)}"
    )


def _thing(size: str | None, colour: str, shape: str) -> Thing:
    return Thing(colour, shape, size)
