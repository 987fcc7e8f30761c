"""Which score sees what: real pictures spoilt in known ways, in EfficientNet-Lite0's features.

``python tests/evaluation/calibration.py`` prints the tables of ``dit/evaluation/SCORES.md``, of all
emoji and of photographs at full size; with a number, 260, those of so few as the test takes, and of
smaller pictures. Emoji are drawn by the data source; photographs are cut from those of scikit-learn
and, where it is installed, scikit-image.
"""

import dataclasses
import importlib.util
import io
import pathlib
import sys

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_image

from dit.config import resolve
from dit.data.sources import emoji
from dit.evaluation.scores import About

SCORES = {"fd": {}, "kd": {"size": 200}, "precision_recall": {}, "copies": {}}
FIGURES = ("fd", "kd", "precision", "recall", "copies")
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
SIDE = 48


def emoji_pictures(limit=None):
    """Training and held-out pictures, and which of each are of the class that is dropped: flags."""
    source = emoji.build(skin_tones=False, held_out=0.5)
    found = []
    for split in (source.train, source.held_out):
        rows = np.random.default_rng(0).permutation(len(split))[:limit]
        pictures = np.stack([split[int(i)]["x"][0] for i in rows])
        flags = [0x1F1E6 <= ord(split.items[int(i)][0][0]) <= 0x1F1FF for i in rows]
        found.append((pictures, np.array(flags)))
    return found


def photographs(limit=None):
    """The same of patches of photographs, those of every second place; a fifth of the photographs is
    the class that is dropped."""
    images = [load_sample_image(f"{name}.jpg") for name in ("china", "flower")]
    if there := importlib.util.find_spec("skimage"):
        folder = pathlib.Path(there.submodule_search_locations[0]) / "data"
        images += [np.asarray(Image.open(folder / name).convert("RGB")) for name in PHOTOGRAPHS]
    found = [([], []), ([], [])]
    for k, image in enumerate(images):
        for y in range(image.shape[0] // SIDE):
            for x in range(image.shape[1] // SIDE):
                patch = image[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE]
                found[(x + y) % 2][0].append(patch)
                found[(x + y) % 2][1].append(k % 5 == 0)
    parts = [(np.stack(x), np.array(mark)) for x, mark in found]
    order = [np.random.default_rng(0).permutation(len(x))[:limit] for x, _ in parts]
    return [(x[rows], mark[rows]) for (x, mark), rows in zip(parts, order, strict=True)]


def quick(network):
    """The network on pictures of 96 pixels, and 256 of its features: a fifth of the work, or less."""

    def apply(params, x):
        return network.apply(params, x)[:, :256]

    return dataclasses.replace(network, side=96, apply=apply)


def noisy(x):
    noise = np.random.default_rng(0).normal(0, 25, x.shape)
    return np.clip(x + noise, 0, 255).astype(np.uint8)


def blurred(x):
    return np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(1.5)))


def compressed(x):
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=10)
    return np.asarray(Image.open(file))


def table(pictures, network):
    """``{case: {figure: value}}``, each with its error; the first case is of new real pictures."""
    (train, _), (aside, dropped) = pictures
    edge = len(aside) * 2 // 5  # held-out pictures that show how near new ones come
    n = int(min((~dropped[edge:]).sum(), len(train) * 2 // 3))
    held_out, rest, rare = aside[:edge], aside[edge:], dropped[edge:]
    features = {name: network.pictures(x) for name, x in
                (("train", train), ("held_out", held_out), ("rest", rest))}  # fmt: skip
    cases = {"new real pictures": features["rest"][:n]}
    spoilt = {"noise": noisy, "blur": blurred, "JPEG, quality 10": compressed}
    for name, spoil in spoilt.items():
        cases[name] = network.pictures(np.stack([spoil(x) for x in rest[:n]]))
    cases["each tenth picture, ten times"] = np.repeat(features["rest"][: n // 10], 10, axis=0)
    cases["one class dropped"] = features["rest"][~rare][:n]
    cases["copies of training pictures"] = features["train"][:n]
    sets = {"reference": features["train"], "held_out": features["held_out"]}
    known = {}
    return {case: measured(network, {**sets, "samples": x}, known) for case, x in cases.items()}


def measured(network, features, known):
    """The figures of features of ``samples`` beside the others, without the network's name.

    ``known``: what has been collected of the others, which are the same for all samples.
    """
    about = About((network,), len(features["samples"]), held_out=len(features["held_out"]))
    found = {}
    for name, options in SCORES.items():
        plan, sets = resolve("evaluation.scores", name, **options)(about), {}
        for need in plan.needs:
            for of in need.of:
                rows, made = features[of], {} if of == "samples" else known.setdefault(of, {})
                if need.key not in made:
                    made[need.key] = need.make(len(rows), rows.shape[1], 1)
                    made[need.key].add(np.arange(len(rows)), rows)
                sets.setdefault(of, {})[need.key] = made[need.key]
        found |= plan.measure(sets)
    return {name.replace(f"_{network.name}", ""): value for name, value in found.items()}


def moved(cases, errors=4):
    """For each case which figures are beyond so many errors from new real pictures': -1, 0 or 1."""
    first, *_ = cases
    real, found = cases[first], {}
    for case, figures in cases.items():
        found[case] = {}
        for name in FIGURES:
            gap = figures[name] - real[name]
            error = np.hypot(figures[f"{name}_error"], real[f"{name}_error"]) + 1e-12
            found[case][name] = int(np.sign(gap)) if abs(gap) > errors * error else 0
    return found


def markdown(cases):
    """The table, in which arrows are what ``moved`` says."""
    arrows = {-1: " ↓", 0: "", 1: " ↑"}
    lines = ["| samples | " + " | ".join(FIGURES) + " |", "|---|" + "---|" * len(FIGURES)]
    for case, signs in moved(cases).items():
        cells = []
        for name in FIGURES:
            value, error = cases[case][name], cases[case][f"{name}_error"]
            digits = {"fd": 1, "kd": 4}.get(name, 3)
            cells.append(f"{value:.{digits}f} ± {error:.{digits}f}{arrows[signs[name]]}")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    limit = int(sys.argv[1]) if sys.argv[1:] else None
    judge = resolve("evaluation.features", "efficientnet_lite0")
    for kind in (emoji_pictures, photographs):
        given = kind(limit)
        print(f"{kind.__name__}: {len(given[0][0])} for reference, {len(given[1][0])} held out")
        print(markdown(table(given, quick(judge) if limit else judge)), flush=True)
