"""Pictures and clips from files that samples go on from: image to video, extending, in-betweening."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from dit import edits
from dit.config import parse_spec
from dit.data import clips, pictures
from dit.diffusion import tasks
from dit.experiment import Experiment
from dit.recipe import Recipe
from dit.types import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 2**26  # of a picture, or of a frame
LONGEST = 16  # times as many frames as a sample has: more are not read
IMPLIED = {  # the task that files stand for, by the options that name them
    ("image",): "image_to_video",
    ("last",): "last_frame",
    ("image", "last"): "in_between",
}
Clip = UInt8[np.ndarray, "_ h w c"]  # of any number of frames
Shape = tuple[int, int, int, int]


def read_files(paths: Mapping[str, str | None], shape: Shape, fps: float | None) -> dict[str, Clip]:
    """The clips in the files of ``--image``, ``--last`` and ``--video``, by these names.

    ``shape``: (f, h, w, c) of a sample, whose size a file must have. ``fps``: frames a second that are
    taken of a video; None: all, which must come at an even rate. Raises UserError for what cannot be
    read, or is of another size.
    """
    found = {}
    for option in ("image", "last"):
        if (path := paths.get(option)) is not None:
            with pictures.opened(path) as image:
                picture = pictures.upright(image, shape[3])
            found[option] = _fitting(picture, path, shape)[None]
    if (path := paths.get("video")) is not None:
        found["video"] = _read_video(path, shape, fps)
    return found


def _read_video(path: str, shape: Shape, fps: float | None) -> Clip:
    """All frames of a video; one at a time, so that each may be refused at once."""
    most = LONGEST * shape[0]
    taking = clips.Taking(frames=1, fps=fps, clips=most + 1)

    def fit(image: Image) -> UInt8[np.ndarray, "h w c"]:
        return _fitting(image, path, shape)

    try:
        read = clips.read(path, taking, fit, shape[3], MOST_PIXELS)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no file {path!r}") from error
    except ImportError as error:
        raise UserError(
            "videos need the package av, which is not installed: pip install av"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot take a clip from {path!r}: {error}") from error
    if len(read) > most:
        raise UserError(f"{path!r} has more than {most} frames; cut out those that are to be given")
    return np.concatenate(read)


def _fitting(image: Image, path: str, shape: Shape) -> UInt8[np.ndarray, "h w c"]:
    height, width = shape[1:3]
    if image.size != (width, height):
        raise UserError(
            f"{path!r} is of {image.height}x{image.width} pixels (height x width); expected "
            f"{height}x{width}, the size of the samples: scale or crop it, or give "
            f"--size={image.height}x{image.width}"
        )
    return np.asarray(image).reshape(height, width, -1)


def check_options(args: Any) -> None:
    """Raise UserError for options that do not go together, before any file is read."""
    files = [name for name in ("image", "last", "video") if getattr(args, name) is not None]
    for other in ("init", "video"):
        if getattr(args, other) is not None and (beside := [n for n in files if n != other]):
            raise UserError(f"got --{other} and --{beside[0]}; expected one to start from")
    if args.task is None:
        if "video" in files and args.mask is None and args.strength is None and not args.like:
            raise UserError(
                "got --video and not what to do with it; give --task=extend, extend_back, in_between or "
                "inpaint, a --mask of what is kept, or --strength for another video like it"
            )
        return
    tasks.mix((args.task,))
    if args.task == "text_to_video" or (args.init is None and not files and not args.like):
        raise UserError(
            f"got --task={args.task} and nothing that it is given; expected --video or --init, or leave "
            "--task out: samples are drawn from the prompt alone"
        )
    implied = IMPLIED.get(tuple(files))
    if implied not in (None, args.task):
        raise UserError(
            f"got --task={args.task} with --{' and --'.join(files)}, which means {implied}: leave "
            "--task out, or give the frames as --video"
        )
    if args.mask is not None:
        raise UserError(f"got --mask and --task={args.task}, which has its own; give one of them")


def with_task(
    recipe: Recipe,
    experiment: Experiment,
    files: Mapping[str, Clip],
    said: str | None,
    masked: bool = False,
) -> Recipe:
    """The recipe with the task that these files stand for, given to a model as it was trained.

    ``said``: how the network is to see them, if that is said. A number of frames that ``extend`` and
    ``extend_back`` leave open is that of the video. ``masked``: a mask is given in place of a task.
    """
    task = IMPLIED.get(tuple(files), recipe.task)
    way = edits.way(experiment)
    if task is None:
        known = said or (way if way == "channels" and masked else recipe.known)
        return dataclasses.replace(recipe, known=known)
    known = said or way
    spec = parse_spec(task)
    if spec["name"] in ("extend", "extend_back") and "frames" not in spec and "video" in files:
        length = count = len(files["video"])
        if known != "channels":
            length = edits.tokens_of(experiment, count, spec["name"] == "extend_back")
        if length is None:
            frames = experiment.codec.frames_of(experiment.shape)
            raise UserError(
                f"the video has {count} frames, and frames of tokens of this model stand for whole "
                f"frames of latents, of {', '.join(map(str, frames))} frames each: cut the video to so "
                f"many from that end, or give --task={task}:frames=N, a number of tokens"
            )
        task = f"{task}:frames={length}"
    return dataclasses.replace(recipe, task=task, known=known)


def start_of(
    files: Mapping[str, Clip],
    mask: Bool[np.ndarray, "n f h w c"] | None,
    recipe: Recipe,
    shape: Shape,
) -> UInt8[np.ndarray, "n f h w c"] | None:
    """What each sample of ``shape`` begins with; None without files.

    ``mask``: what the recipe's task keeps, None without one. Whole frames at the ends are taken from the
    end of a clip that samples go on from, from the beginning of one that they lead to, and from both
    ends of one that is on both sides of them. For all else the video must be as long as a sample.
    """
    if not files:
        return None
    n = recipe.count
    cut = mask is None or (mask.any((2, 3, 4)) != mask.all((2, 3, 4))).any()
    if cut or recipe.strength != 1:
        found = files["video"]
        if len(found) != shape[0]:
            raise UserError(
                f"the video has {len(found)} frames; expected {shape[0]}, those of a sample: cut it, or "
                f"give --frames={len(found)}"
            )
        return np.broadcast_to(found, (n, *shape))
    free = np.flatnonzero(~mask[0].all((1, 2, 3)))
    head, tail = int(free[0]), shape[0] - 1 - int(free[-1])
    first, last = (files.get(name, files.get("video")) for name in ("image", "last"))
    start = np.zeros((n, *shape), np.uint8)
    if head:
        start[:, :head] = _part(first, head, from_end=not tail)
    if tail:
        start[:, shape[0] - tail :] = _part(last, tail, from_end=head > 0)
    return start


def _part(clip: Clip, count: int, from_end: bool) -> Clip:
    """So many frames of a clip; UserError for a shorter one."""
    if len(clip) < count:
        raise UserError(
            f"a file has {len(clip)} frames; the task needs {count} of it, which are whole tokens of "
            f"this model: give a --video of {count} or more"
        )
    return clip[-count:] if from_end else clip[:count]
