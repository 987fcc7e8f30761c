"""From noise to data: ``sample`` runs a solver over a time grid; guidance and edits wrap the
denoiser.

``sample.py`` is the one loop. A solver (``solvers/<name>.py``), a grid (``grids/<name>.py``) and a
guidance rule (``guidance/<name>.py``) are one small file each, found by name with
``config.resolve``. All of them see a model only as ``denoise(x_t, t) -> x0_hat``.
"""
