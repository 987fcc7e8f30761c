"""Moving scenes and the sentences that describe them: ``parse(wording) == scene`` for its ``wordings``.

    a striped red circle moves left slowly               one actor; speed and texture need not be said
    a blue square falls                                  from rest, and bounces on the floor
    a green star rests while the camera pans right
    a pink ring moves up quickly while the camera pans left
    a red cross moves right behind a grey post
    a red circle moves right and a blue square moves left    they meet, the first in front
    a green seven moves up slowly                        a handwritten digit, in any of these scenes
    a butterfly emoji moves left                         an emoji, in scenes where it meets nobody

Left, right, up and down are those of the ground, not of the picture. The pairs of a colour and a shape
that are never trained on are those of ``dit.scenes.grammar``; each digit lacks one colour or two in like
manner, and each emoji one of the ``WAYS`` to go.
"""

from __future__ import annotations

import dataclasses
import re

from dit.scenes.digits import WORDS as DIGITS
from dit.scenes.grammar import COLOURS, SHAPES, unseen
from dit.types import UserError

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x), y down
SPEEDS = ("slowly", "quickly")
TEXTURES = ("striped", "dotted")
ACTIONS = ("moves", "falls", "rests")
PANS = ("left", "right")
KINDS = ("drift", "fall", "pan", "hide", "meet")
WAYS = (*DIRECTIONS, "falls", "rests")
LOOKS = ("shape", "digit", "emoji")  # of the actors of a scene, which are of one kind


@dataclasses.dataclass(frozen=True, order=True)
class Actor:
    """Something that moves. ``shape``: one of ``SHAPES`` or ``DIGITS``, or an emoji's English name.

    ``colour``: one of ``COLOURS``; None for an emoji, which has its own. ``texture``: one of
    ``TEXTURES``, or None for a plain colour. ``direction`` and ``speed`` (of ``SPEEDS``, None where
    nothing is said of it) are those of what ``moves``, and None where it ``falls`` or ``rests``.
    """

    colour: str | None
    shape: str
    texture: str | None = None
    action: str = "moves"
    direction: str | None = None
    speed: str | None = None

    @property
    def looks(self) -> str:
        """One of ``LOOKS``."""
        if self.colour is None:
            return "emoji"
        return "digit" if self.shape in DIGITS else "shape"

    @property
    def way(self) -> str:
        """One of ``WAYS``."""
        return self.direction or self.action

    @property
    def unseen(self) -> bool:
        """Whether such an actor is never trained on."""
        if self.looks == "emoji":
            return (len(self.shape) + WAYS.index(self.way)) % len(WAYS) == 3
        if self.looks == "digit":
            return (list(COLOURS).index(self.colour) + DIGITS.index(self.shape)) % 6 == 3
        return unseen(self.colour, self.shape)

    def __str__(self) -> str:
        kind = "emoji" if self.looks == "emoji" else None
        looks = " ".join(filter(None, (self.texture, self.colour, self.shape, kind)))
        does = " ".join(filter(None, (self.action, self.direction, self.speed)))
        return f"{'an' if looks[0].lower() in 'aeiou' else 'a'} {looks} {does}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a sentence says: the ``actors``, where the camera pans, and whether there is a post."""

    actors: tuple[Actor, ...]
    pan: str | None = None
    post: bool = False

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        if len(self.actors) > 1:
            return "meet"
        if self.post:
            return "hide"
        return "pan" if self.pan else "fall" if self.actors[0].action == "falls" else "drift"

    @property
    def looks(self) -> str:
        """One of ``LOOKS``."""
        return self.actors[0].looks

    @property
    def unseen(self) -> bool:
        """Whether it holds an actor that is never trained on."""
        return any(actor.unseen for actor in self.actors)


def wordings(scene: Scene) -> tuple[str, ...]:
    """All sentences that describe the scene and nothing else, the plainest first."""
    said = " and ".join(map(str, scene.actors))
    said += " behind a grey post" * scene.post
    if scene.pan:
        pans = f"the camera pans {scene.pan}"
        return f"{said} while {pans}", f"{pans} while {said}"
    return (said,)


def _any(words: object) -> str:
    return f"({'|'.join(map(str, words))})"


_ACTOR = (
    rf"an? (?:(?:{_any(TEXTURES)} )?{_any(COLOURS)} {_any((*SHAPES, *DIGITS))}"
    r"|((?:(?! moves | falls | rests ).)+?) emoji) "
    rf"(?:(falls|rests)|moves {_any(DIRECTIONS)}(?: {_any(SPEEDS)})?)"
)
_PAN = rf"the camera pans {_any(PANS)}"
_ONE = re.compile(_ACTOR)
_PANNED = re.compile(rf"{_ACTOR} while {_PAN}")
_PANNING = re.compile(rf"{_PAN} while {_ACTOR}")
_HIDDEN = re.compile(rf"{_ACTOR} behind a grey post")
_MET = re.compile(rf"{_ACTOR} and {_ACTOR}")
_FIELDS = 7  # groups of ``_ACTOR``


def parse(sentence: str) -> Scene:
    """The scene that a sentence describes; UserError if it is none of the sentences made here."""
    text = " ".join(sentence.split())
    scene = None
    if found := _ONE.fullmatch(text):
        scene = Scene((_actor(*found.groups()),))
    elif found := _PANNED.fullmatch(text):
        *actor, pan = found.groups()
        scene = Scene((_actor(*actor),), pan)
    elif found := _PANNING.fullmatch(text):
        pan, *actor = found.groups()
        scene = Scene((_actor(*actor),), pan)
    elif found := _HIDDEN.fullmatch(text):
        scene = Scene((_actor(*found.groups()),), post=True)
    elif found := _MET.fullmatch(text):
        fields = found.groups()
        scene = Scene((_actor(*fields[:_FIELDS]), _actor(*fields[_FIELDS:])))
    if scene is None or not sensible(scene):
        raise UserError(
            f"got the sentence {sentence!r}; expected one such as 'a striped red circle moves left "
            "slowly', 'a blue square falls', 'a green star rests while the camera pans right', 'a red "
            "cross moves right behind a grey post' or 'a red circle moves right and a blue square moves "
            f"left'; or of 'a green seven', or 'a butterfly emoji' that meets nobody; of the colours "
            f"{', '.join(COLOURS)} and the shapes {', '.join(SHAPES)}"
        )
    return scene


def sensible(scene: Scene) -> bool:
    """Whether such a scene can be filmed: nobody leaves the picture, and all can be told apart."""
    first, last = scene.actors[0], scene.actors[-1]
    along = {actor.direction for actor in scene.actors}
    if len({actor.looks for actor in scene.actors}) > 1:
        return False
    if scene.looks != "shape" and any(actor.texture for actor in scene.actors):
        return False
    if scene.kind == "meet":
        return along == {"left", "right"} and first.colour != last.colour and scene.looks != "emoji"
    if scene.post:
        return along <= {"left", "right"}
    return scene.pan is None or not along & {"left", "right"}


def _actor(
    texture: str | None,
    colour: str | None,
    shape: str | None,
    emoji: str | None,
    still: str | None,
    direction: str | None,
    speed: str | None,
) -> Actor:
    return Actor(colour, shape or emoji, texture, still or "moves", direction, speed)
