"""The sizes of Wan's video autoencoders, and the levels of their two halves."""

from __future__ import annotations

from typing import Any

from dit.models.wan_vae_blocks import Stage
from dit.types import UserError

DEFAULTS = {
    "multipliers": (1, 2, 4, 4),
    "decoder_width": None,
    "depth": 2,
    "latent_channels": 16,
    "temporal": None,
    "shortcuts": False,
    "patch": 1,
}
SIZES: dict[str, dict[str, Any]] = {  # 126,892,531 parameters, and 704,688,668
    "Wan2.1": {"width": 96},
    "Wan2.2": {
        "width": 160,
        "decoder_width": 256,
        "latent_channels": 48,
        "shortcuts": True,
        "patch": 2,
    },
}


def plan(
    width: int,
    decoder_width: int,
    multipliers: tuple[int, ...],
    depth: int,
    temporal: tuple[bool, ...],
    shortcuts: bool,
) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """The levels of the encoder, the finest first, and of the decoder, the coarsest first."""
    last, encoder, decoder = len(multipliers) - 1, [], []
    inputs = width
    for level, times in enumerate(multipliers):
        here, resample = width * times, "down" if level < last else ""
        encoder.append(
            Stage(
                f"down_{level}",
                level,
                sum(temporal[:level]),
                inputs,
                here,
                here,
                depth,
                resample,
                level < last and temporal[level],
                shortcuts,
            )
        )
        inputs = here
    inputs = decoder_width * multipliers[-1]
    for level, times in reversed(list(enumerate(multipliers))):
        here, resample = decoder_width * times, "up" if level else ""
        outputs = here if shortcuts or not level else here // 2
        decoder.append(
            Stage(
                f"up_{level}",
                level,
                sum(temporal[:level]),
                inputs,
                here,
                outputs,
                depth + 1,
                resample,
                level > 0 and temporal[level - 1],
                shortcuts and level > 0,
            )
        )
        inputs = outputs
    return tuple(encoder), tuple(decoder)


def check_widths(stages: tuple[tuple[Stage, ...], tuple[Stage, ...]], shortcuts: bool) -> None:
    """Raise UserError for channels that cannot be halved, averaged or copied."""
    for stage in stages[0] + stages[1]:
        if not shortcuts and stage.resample == "up" and stage.width % 2:
            raise UserError(
                f"got a level of {stage.width} channels in the decoder, which halves them: give an even "
                "number"
            )
        cell = (2 if stage.temporal else 1) * (4 if stage.resample else 1)
        few, many = stage.inputs * cell, stage.outputs
        if stage.resample == "up":
            few, many = stage.outputs * cell, stage.inputs
        if stage.shortcut and few % many:
            raise UserError(
                f"got levels of {stage.inputs} and {stage.outputs} channels with shortcuts, whose means "
                f"or copies are {few} numbers for {many} channels: give channels that divide"
            )
