"""What preflight found out, as a table for people and JSON for programs."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dit.parallel.estimate import StepTime
from dit.parallel.flags import TPUS, variables
from dit.parallel.hlo import Collective

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """One program on one topology. FLOPs and images are of all devices, memory of one, in bytes.

    ``model_flops``: of the model, by formula; ``program_flops``: of the program's matrix products,
    recomputation included, but without those inside kernels; ``kernel_flops``: of these, by formula.
    ``memory``: what lies there, ``temporaries`` (what a step holds beside its inputs, at its peak)
    and ``needed``, all of it, by the compiler. ``within``: what the temporaries hold in turn, by
    formula, each at its own peak. ``expected_sizes``: elements of the arrays that a step has to
    gather. ``each``: the examples in one of ``images``, of which several are packed into a row.
    ``steps``: of the whole run, of which this program has a ``share``. ``compile_seconds`` passed while
    it was compiled and read, and ``cpu_seconds`` were spent by all threads. ``flags``: of the TPU
    compiler, None for others.
    """

    what: str
    topology: str
    mesh: dict[str, int]
    devices: int
    chips: int
    images: int
    steps: int
    tokens: int
    model_flops: int
    program_flops: int
    peak_flops: float | None
    hbm: int | float | None
    remat: str
    advice: list[str]
    expected_sizes: frozenset[int]
    memory: dict[str, int]
    within: dict[str, int]
    fits: bool
    collectives: Sequence[Collective] = ()
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)
    kernel_flops: float = 0.0
    time: StepTime | None = None
    compile_seconds: float = 0.0
    cpu_seconds: float = 0.0
    flags: str | None = None
    share: float = 1.0
    each: float = 1.0

    @property
    def images_per_s(self) -> float:
        """Predicted, of all devices; 0 where there is no prediction."""
        return self.images * self.each / self.time.total if self.time else 0.0

    def utilisation(self, exposed: bool = True) -> float | None:
        """Model FLOPs over what the chips could do in the predicted time; None without a prediction.

        ``exposed=False`` leaves out communication: what the compiler's cycles alone say.
        """
        if self.time is None:
            return None
        seconds = self.time.total if exposed else self.time.compiled + self.time.kernels
        return self.model_flops / seconds / (self.peak_flops * self.devices)

    @property
    def unexpected(self) -> Collective | None:
        """The largest all-gather of what is not the size of a parameter or a condition, or None."""
        gathers = (c for c in self.collectives if c.kind == "all-gather")
        return next((c for c in gathers if elements(c.shape) not in self.expected_sizes), None)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, with the derived ones."""
        return {
            **{k: v for k, v in dataclasses.asdict(self).items() if k != "expected_sizes"},
            "images_per_s": self.images_per_s,
            "utilisation": self.utilisation(),
            "utilisation_without_communication": self.utilisation(exposed=False),
            "step_seconds": self.time.total if self.time else None,
            "exposed_seconds": self.time.exposed if self.time else None,
        }


def elements(shape: str) -> int:
    """The number of elements of the largest array in a shape such as ``bf16[8,256]``."""
    dims = re.findall(r"\[([\d,]*)\]", shape)
    return max((math.prod(int(d) for d in text.split(",") if d) for text in dims), default=0)


def gib(n: int | float) -> str:
    """Bytes in the unit that suits them."""
    return f"{n / GIB:.2f} GiB" if n >= GIB / 100 else f"{n / 2**20:.2f} MiB"


def one_line(row: Mapping[str, Any]) -> str:
    """Fit, speed and utilisation, of a report as JSON."""
    needed = gib(row["memory"]["needed"])
    if not row["fits"]:
        return f"does not fit: {needed} of {gib(row['hbm'])}"
    if row["step_seconds"] is None:
        return f"{needed} a device"
    return (
        f"{needed}, {row['step_seconds'] * 1e3:.1f} ms a step, {row['images_per_s']:.0f} images/s, "
        f"utilisation {row['utilisation']:.2f} (predicted)"
    )


def table(report: Report) -> str:
    """The whole report as text."""
    mesh = " x ".join(f"{k}={n}" for k, n in report.mesh.items()) or "one device"
    lines = [
        f"{report.what} on {report.topology}: {report.devices} devices, {mesh}, "
        f"{report.images} {kind_of(report)} ({report.images / report.devices:g} a device), "
        f"remat {report.remat}",
        "",
        "memory a device",
    ]
    for kind, n in report.memory.items():
        if kind != "needed":
            lines.append(f"  {kind:14}{gib(n):>12}")
        if kind == "temporaries":
            lines += [
                f"    {part:12}{gib(size):>12}  "
                + ("of them, by formula" if size <= n else "by formula, before XLA fuses any away")
                for part, size in within(report)
            ]
    needed = report.memory["needed"]
    of = f" of {gib(report.hbm)}" if report.hbm else ""
    lines += [f"  {'needed':14}{gib(needed):>12}{of}, by the compiler", ""]
    if not report.fits:
        lines += [f"  {part:14}{gib(n):>12}  of it, by formula" for part, n in within(report)]
        return "\n".join([*lines, "", f"OUT OF MEMORY: needs {gib(needed)} a device{of}"])
    lines += [f"model FLOPs a step   {report.model_flops:.4g}", program_flops(report)]
    if report.time is not None:
        t = report.time
        lines += [
            "",
            "time a step (predicted: compiler's cycles, analytic kernels and links)",
            f"  compiled code {t.compiled * 1e3:9.2f} ms",
            f"  kernels       {t.kernels * 1e3:9.2f} ms",
            f"  communication {t.exposed * 1e3:9.2f} ms exposed, of "
            f"{(t.collectives_async + t.collectives_sync) * 1e3:.2f} ms",
            f"  total         {t.total * 1e3:9.2f} ms: {report.images_per_s:.0f} images/s, "
            f"{report.tokens / t.total / report.devices:.0f} tokens/s a chip",
            f"  utilisation   {report.utilisation():.3f}; "
            f"{report.utilisation(exposed=False):.3f} without communication",
        ]
    lines += ["", "collectives a step and device", *_collectives(report)]
    if report.kernels:
        lines += ["", "kernels", *(f"  {n:6} x {name}" for name, n in report.kernels.items())]
    lines += [f"\nadvice: {text}" for text in report.advice]
    if report.flags is not None:
        launched = report.flags in [text for chip in TPUS for text in variables(chip).values()]
        lines += ["", f"flags: {'as launched' if launched else report.flags or 'none'}"]
    lines += ["", f"compiled in {report.compile_seconds:.0f} s, {report.cpu_seconds:.0f} s of CPU"]
    return "\n".join(lines)


def kind_of(report: Report) -> str:
    """What a batch holds: images, or packed rows."""
    if report.each == 1:
        return "images"
    return f"rows of {report.tokens // report.images} tokens, about {report.each:.3g} images each,"


def within(report: Report) -> list[tuple[str, int]]:
    """What a formula says of the temporaries, the largest first."""
    return sorted(report.within.items(), key=lambda item: -item[1])


def program_flops(report: Report) -> str:
    """The FLOPs that the program executes, those inside kernels apart."""
    seen, inside, model = report.program_flops, report.kernel_flops, report.model_flops
    line = f"program FLOPs a step {seen:.4g} ({seen / model:.2f} of the model's"
    if not report.kernels:
        return f"{line})"
    if not inside:
        return f"{line}, without what is inside kernels)"
    return (
        f"{line}, without what is inside kernels: {inside:.4g} by formula, "
        f"{(seen + inside) / model:.2f} together)"
    )


def _collectives(report: Report) -> list[str]:
    """By kind and mesh axis: how many, and their bytes; then the largest unexpected one."""
    sums: dict[tuple, list[int]] = collections.defaultdict(lambda: [0, 0])
    for c in report.collectives:
        entry = sums[c.kind, c.axes]
        entry[0] += c.times
        entry[1] += c.total
    lines = [
        f"  {kind:20}{'+'.join(axes):16}{times:6} x {gib(total):>12}"
        for (kind, axes), (times, total) in sorted(sums.items(), key=lambda kv: -kv[1][1])
    ]
    if (worst := report.unexpected) is not None:
        lines.append(f"  largest unexpected: {worst.kind} {worst.shape} in {worst.name}")
    return lines or ["  none"]
