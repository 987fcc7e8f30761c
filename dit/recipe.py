"""What decides a set of samples, and the rules that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax

import dit
from dit import rng
from dit.config import parse_spec, resolve
from dit.diffusion import tasks
from dit.sampling import experts, rollouts
from dit.sampling.edit import first_step
from dit.sampling.grids import GridFn
from dit.sampling.guidance import Guidance
from dit.sampling.nfe import check_countable
from dit.sampling.solver import Solver
from dit.types import UserError

LATER = (
    "known",
    "prompts",
    "negative",
    "task",
    "rollout",
    "low",
    "boundary",
    "low_guidance",
)  # fields that older recipes lack
RANGES = {"num": (0, 10**7), "steps": (1, 10**5), "batch": (1, 10**6)}


def check_numbers(**given: int) -> None:
    """Raise UserError for a number of samples, steps or samples at once that makes no sense."""
    for name, value in given.items():
        least, most = RANGES[name]
        if not least <= value <= most:
            raise UserError(
                f"got {name}={value} for the samples; expected at least {least} and at most {most}"
            )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides a set of samples, but for the parameters. Specs are ``name:key=value,...``.

    ``labels`` is empty for a model without classes, which makes ``num`` samples. Sample i draws from
    its own key, a function of ``seed`` and i; ``batch`` are made at once. ``strength``: how much of
    the way to noise the data go that an edit starts from. ``known``: whether what its mask keeps is
    ``noised`` with the rest, given to the network ``clean``, with t = 0, or as known ``channels``.
    ``task``: what says it in place of a mask (``diffusion.tasks``). ``prompts``: each sample's text,
    for a model that reads one; the empty text is the null condition. ``negative``: what guidance
    leads away from in place of the null condition, one text for all or one for each. ``rollout``:
    how the frames of a clip come to be (``sampling.rollouts``); None: all together. ``low``: the
    workdir of another network, which draws at times below ``boundary``, with ``low_guidance`` (None:
    ``guidance``).
    Raises UserError for numbers out of range, or that differ.
    """

    labels: tuple[int, ...] = ()
    num: int = 0
    seed: int = 0
    solver: str = "heun"
    grid: str = "uniform"
    steps: int = 50
    guidance: str = "1"
    batch: int = 250
    strength: float = 1.0
    known: Literal["noised", "clean", "channels"] = "noised"
    prompts: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    task: str | None = None
    rollout: str | None = None
    low: str | None = None
    boundary: float | None = None
    low_guidance: str | None = None

    def settings(self) -> dict[str, Any]:
        """The fields as plain values; those that were added later only where not the default.

        So the settings of a recipe from before they existed, by which results are stored, stay.
        """
        usual = {f.name: f.default for f in dataclasses.fields(self) if f.name in LATER}
        return {k: v for k, v in dataclasses.asdict(self).items() if usual.get(k, ...) != v}

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.labels) or len(self.prompts) or self.num

    def __post_init__(self):
        if self.labels and self.prompts and len(self.labels) != len(self.prompts):
            raise UserError(
                f"got {len(self.labels)} labels and {len(self.prompts)} prompts; expected one of each "
                "for every sample"
            )
        if len(self.negative) not in (0, 1, len(self.prompts)):
            raise UserError(
                f"got {len(self.negative)} negative prompts for {len(self.prompts)} prompts; expected "
                "one for all, or one for each"
            )
        check_numbers(num=self.num, steps=self.steps, batch=self.batch)
        rng.check_seed(self.seed)
        first_step(self.steps, self.strength)
        if self.task is not None:
            tasks.mix((self.task,))
        if (self.low is None) != (self.boundary is None) or (self.low_guidance and not self.low):
            raise UserError(
                f"got low={self.low}, boundary={self.boundary}, low_guidance={self.low_guidance}; "
                "expected another network and the time below which it draws together: --low=WORKDIR "
                "--boundary=0.875, and perhaps --low-guidance"
            )
        if self.low is not None and self.rollout is not None:
            raise UserError(
                "got a rollout and two networks (--low), of which one draws all frames of a step; leave "
                "one of them out"
            )
        if self.rollout is not None:
            rollouts.parse(self.rollout)
            if self.strength != 1:
                raise UserError(
                    f"got a rollout and strength={self.strength}, which begins with a whole clip; leave "
                    "one of them out"
                )


def recipe_from(settings: Mapping[str, Any], num_classes: int | None) -> Recipe:
    """The recipe of a config's ``samples`` section: its ``num`` samples, classes and prompts in turn."""
    kept = {f.name for f in dataclasses.fields(Recipe)}
    given = {k: v for k, v in settings.items() if k in kept}
    num, prompts, negative = given["num"], given.get("prompts", ()), given.get("negative", ())
    given["labels"] = in_turn(range(num_classes or 0), num)
    given["prompts"] = in_turn(prompts, num)
    if len(negative) == len(prompts) > 1:  # they belong together
        given["negative"] = in_turn(negative, num)
    return Recipe(**{**given, "guidance": str(given["guidance"])})


def in_turn(values: Sequence[Any], num: int) -> tuple[Any, ...]:
    """``num`` of the values, from the first again after the last; none of none."""
    return tuple(values[i % len(values)] for i in range(num if values else 0))


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the specs of a recipe name; UserError for names and options that do not exist.

    ``low``: those of the network that draws at times below ``boundary``, where there is one.
    """

    solver: Solver
    grid: GridFn
    guidance: Guidance
    autoguided: bool
    low: Rules | None = None
    boundary: float | None = None

    @property
    def each(self) -> tuple[Rules, ...]:
        """Those of all networks."""
        return (self,) if self.low is None else (self, self.low)

    @property
    def counted(self) -> Guidance:
        """A rule with the network evaluations of all."""
        if self.low is None:
            return self.guidance
        return experts.counted(self.guidance, self.low.guidance, self.boundary)

    @property
    def guided(self) -> bool:
        """Whether the network is to give two estimates, of which it needs to be told two things."""
        return self.guidance.evaluations != 1 and not self.autoguided


def rules(recipe: Recipe) -> Rules:
    """The rules of a recipe, which say what is wrong with it before a model is there."""
    spec = parse_spec(recipe.guidance, number="cfg:scale")
    found = Rules(
        resolve("sampling.solvers", **parse_spec(recipe.solver)),
        resolve("sampling.grids", **parse_spec(recipe.grid)),
        resolve("sampling.guidance", **spec),
        spec["name"] == "autoguidance",
    )
    if recipe.low is not None:
        plain = {"low": None, "boundary": None, "low_guidance": None}
        guidance = recipe.low_guidance or recipe.guidance
        low = rules(dataclasses.replace(recipe, guidance=guidance, **plain))
        if found.autoguided or low.autoguided:
            raise UserError(
                "got autoguidance, by a weaker network, and two networks (--low); leave one of them out"
            )
        found = dataclasses.replace(found, low=low, boundary=recipe.boundary)
    check_countable(found.solver, found.counted)
    return found


def stamped(
    recipe: Recipe, restored: Any, nfe: int, inputs: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The recipe as a PNG carries it: with the checkpoint it was made from, and by what.

    ``inputs``: digests of what else went in, such as ``init``, the data that an edit began with.
    """
    fields = {k: v for k, v in dataclasses.asdict(recipe).items() if v or k not in LATER}
    return {
        **fields,
        "inputs": dict(inputs or {}),
        "nfe": nfe,
        "ema": restored.which,
        "checkpoint_step": restored.step,
        "checkpoint_fingerprint": restored.fingerprint,
        "version": dit.__version__,
        "jax": jax.__version__,
    }
