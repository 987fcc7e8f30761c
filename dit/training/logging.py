"""What a run writes as it proceeds: ``metrics.jsonl``, TensorBoard, optionally W&B, a progress bar.

A row of metrics is ``{"step": updates made, name: number, "loss_t": [per time bin], ...}``. Scores
have a row of their own, ``{"step": ..., "scores/fid": ..., "scores/fid_error": ...}``. After a resume
the rows past the restored step are dropped, so no step occurs twice among either.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import pathlib
import secrets
import tempfile
from typing import Any

import numpy as np
import tqdm

from dit import storage
from dit.storage.growing import Growing
from dit.types import OutsideError, UserError

TIMING = ("steps_per_s", "images_per_s", "mfu")  # fields of a row that are not reproducible


class MetricsLog:
    """The metrics of a run that starts or resumes at ``step``."""

    def __init__(
        self,
        workdir: storage.Place,
        step: int,
        *,
        config: dict[str, Any],
        wandb: bool = False,
    ):
        keep_until(workdir / "metrics.jsonl", step)
        self._files = Growing(workdir)
        folder = self._files.folder
        self._stream = open(folder / "metrics.jsonl", "a")  # noqa: SIM115 (closed by close)
        self._purge = step + 1 if step else None
        (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        home = pathlib.Path(tempfile.gettempdir()) if self._files.remote else folder
        self._wandb = _start_wandb(home, workdir, step, config) if wandb else None

    @functools.cached_property
    def _board(self) -> Any:
        """TensorBoard's files, from the first row on: the first step need not wait for their library."""
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._files.folder / "tensorboard"), purge_step=self._purge)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row, and pass it to the boards."""
        row = {name: _json(value) for name, value in row.items()}
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()
        scalars = dict(_scalars(row))
        for name, value in scalars.items():
            self._board.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(scalars, step=row["step"])

    def flush(self) -> None:
        """Flush before a checkpoint, so that its rows are stored (in a bucket, too) when it is."""
        if self._files.remote:
            if "_board" in vars(self):
                self._board.flush()
            self._files.flush()

    def close(self) -> None:
        """Flush everything to disk, or to the bucket."""
        self._stream.close()
        if "_board" in vars(self):
            self._board.close()
        self._files.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(workdir: str | storage.Place) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``, without lines that are truncated or corrupt."""
    file = storage.workdir(workdir) / "metrics.jsonl"
    rows = []
    for line in file.read_bytes().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):  # neither UTF-8 nor JSON, or a number too long
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def keep_until(file: storage.Place, step: int) -> None:
    """Drop the rows of ``metrics.jsonl`` that come after ``step``."""
    if file.exists():
        rows = [row for row in read_metrics(file.parent) if row["step"] <= step]
        storage.write(file, "".join(json.dumps(row) + "\n" for row in rows))


class Progress:
    """A progress bar: step/s, images/s, utilisation, time left and the loss."""

    def __init__(self, step: int, steps: int, *, shown: bool = True):
        self._bar = tqdm.tqdm(
            total=steps, initial=step, unit="step", disable=not shown, dynamic_ncols=True
        )

    def advance(self) -> None:
        """Count one more dispatched step."""
        self._bar.update()

    def show(self, row: dict[str, Any]) -> None:
        """Show a row's numbers beside the bar."""
        shown = {"loss": f"{row['loss']:.4f}", "img/s": f"{row['images_per_s']:.0f}"}
        if row.get("mfu") is not None:
            shown["mfu"] = f"{100 * row['mfu']:.0f}%"
        self._bar.set_postfix(shown)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text)

    def close(self) -> None:
        """Leave the bar as it stands, and end its line."""
        self._bar.close()


def _scalars(row: dict[str, Any]):
    for name, value in row.items():
        if isinstance(value, list):
            yield from ((f"{name}/{i}", v) for i, v in enumerate(value) if v is not None)
        elif value is not None and name != "step":
            yield name, value


def _json(value: Any) -> Any:
    """Arrays as numbers or lists, with null for numbers that are not finite: JSON has no NaN."""
    value = np.asarray(value).tolist() if hasattr(value, "shape") else value
    if isinstance(value, list):
        return [_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _start_wandb(folder: pathlib.Path, workdir: storage.Place, step: int, config: dict[str, Any]):
    """The W&B run of this workdir: its existing one if training resumes, else a new one.

    Its id is stored in ``wandb-id``. W&B drops steps that are logged again after a crash; they are
    equal.
    """
    wandb, file = find_wandb(), workdir / "wandb-id"
    if not (step and file.exists()):
        storage.write(file, secrets.token_hex(8))
    name = file.read_text().strip()
    try:
        return wandb.init(
            dir=str(folder), id=name, name=workdir.name, config=config, resume="allow"
        )
    except Exception as error:
        raise OutsideError(
            f"W&B did not start ({error}); log in with 'wandb login', set WANDB_MODE=offline, or train "
            "with --config.log.wandb=false"
        ) from error


def find_wandb() -> Any:
    """The module ``wandb``; UserError if it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "log.wandb is set, but wandb is not installed: pip install 'dit-jax[wandb]'"
        ) from error
    return wandb
