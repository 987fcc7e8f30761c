"""Parts of ``torch-fidelity``, which imports torchvision for what is not used here."""

import importlib
import sys
import types
from unittest import mock

import numpy as np
import pytest


def part(name):
    """The module ``torch_fidelity.<name>``; skipped where it is not installed."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("pip install --no-deps torch-fidelity")
    there = {}
    if importlib.util.find_spec("torchvision") is None:
        there = {"torchvision": mock.MagicMock(), "torchvision.datasets": types.ModuleType("d")}
        there |= {
            f"torchvision.{n}": mock.MagicMock() for n in ("transforms", "transforms.functional")
        }
        for data in ("CIFAR10", "CIFAR100", "STL10"):
            setattr(there["torchvision.datasets"], data, object)
    with mock.patch.dict(sys.modules, there):
        return importlib.import_module(f"torch_fidelity.{name}")


def inception(path):
    """Their network with random weights, which are saved as ``path``."""
    import torch

    module = part("feature_extractor_inceptionv3")
    wanted = module.FeatureExtractorInceptionV3.get_provided_features_list()
    blank = mock.patch.object(module, "load_state_dict_from_url", return_value={})
    lax = mock.patch.object(module.FeatureExtractorBase, "load_state_dict", return_value=None)
    with blank, lax:
        network = module.FeatureExtractorInceptionV3("random", list(wanted))
    torch.manual_seed(0)
    for name, x in network.state_dict().items():
        if name.endswith("conv.weight"):
            x.copy_(torch.randn_like(x) * (2 / x[0].numel()) ** 0.5)
        elif name.endswith(("bn.weight", "running_var")):
            x.copy_(0.5 + torch.rand_like(x))
        elif x.is_floating_point():
            x.copy_(0.1 * torch.randn_like(x))
    torch.save(network.state_dict(), path)
    return network


def pictures(n, height, width, seed=0):
    """Smooth coloured pictures, uint8 ``(n, h, w, 3)``."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 6, (n, 1, 1, 3)) + rng.uniform(1, 9, (n, 1, 1, 3)) * (
        np.linspace(0, 1, height)[:, None, None]
        + rng.uniform(0, 2) * np.linspace(0, 1, width)[:, None]
    )
    noise = rng.normal(0, 20, (n, height, width, 3))
    return np.clip(127 + 90 * np.sin(phase) + noise, 0, 255).astype(np.uint8)
