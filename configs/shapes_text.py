"""Coloured shapes from a sentence, 32x32: text-to-image at the smallest scale that shows it.

A caption such as "a small red circle left of a blue square" is read byte by byte by an encoder that is
trained with the network: its blocks attend to the bytes, and its mean goes where the time goes. Short
words (--config.data.kinds=one,count,relation,word) need smaller patches, and an accelerator.

Command:   python -m dit.train --config=configs/shapes_text.py --workdir=runs/shapes_text
           python -m dit.sample --workdir=runs/shapes_text --guidance=4 --prompt="two green stars"
           python -m dit.evaluate --workdir=runs/shapes_text --num=500
Expected:  on 500 held-out prompts with guidance 4: colour .98, shape .95, pairs of both that were never
           trained on .94, size .92, count .65, relation .44; copies .8%, memorised .42 (.39 to .45; new
           pictures: .5), held-out loss .052; 76 minutes on one shared core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 5000,
            "batch_size": 64,
            "data": {"name": "shapes_text", "kinds": ("one", "count", "relation")},
            "codec": {"name": "pixel"},
            "text": {
                "name": "bytes",
                "length": 64,
                "width": 64,
                "depth": 2,
                "heads": 2,
                "gives": "both",
            },
            "model": {
                "name": "dit",
                "depth": 6,
                "width": 96,
                "heads": 3,
                "patch": 4,
                "block": "adaln_cross",
                "positions": "sincos+rope",
                "qk_norm": True,
            },
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "velocity"},
            "times": {"name": "shifted", "shift": 2.0, "base": "logit_normal"},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {"name": "muon", "lr": 4e-3, "betas": (0.9, 0.99), "clip": 1.0},
            "schedule": {"name": "wsd", "warmup": 200, "decay": 0.3},
            "ema": {"half_lives": (200.0,), "rampup": 0.1},
            "checkpoint": {"every": 500, "keep": 1},
            "log": {"every": 50},
            "samples": {
                "every": 1000,
                "num": 16,
                "solver": "heun",
                "steps": 20,
                "guidance": 4.0,
                "prompts": (
                    "a small red circle",
                    "a large blue square",
                    "a green triangle",
                    "a large yellow star",
                    "two purple rings",
                    "three white crosses",
                    "four orange squares",
                    "five pink circles",
                    "a red star left of a blue square",
                    "a small green ring above a large pink circle",
                    "a white triangle right of an orange cross",
                    "a large purple circle below a small yellow square",
                    "a small white ring",
                    "a large orange cross",
                    "two yellow triangles",
                    "a green circle below a red ring",
                ),
            },
        }
    )
