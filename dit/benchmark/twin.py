"""A torch DiT of the same shape, to be timed beside ours: the adaLN-Zero transformer in plain torch.

Written as a user of torch would: ``nn.Linear``, ``scaled_dot_product_attention``, ``AdamW``, and an
exponential moving average; on a GPU under bfloat16's autocast, or in float32 as TF32, which is JAX's
default there. Needs the extra ``torch``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

KINDS = ("torch eager", "torch.compile")


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the condition."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2)
        )
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        parts = self.modulation(F.silu(c))[:, None].chunk(6, dim=-1)
        h = self.norms[0](x) * (1 + parts[1]) + parts[0]
        q, k, v = self.qkv(h).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + parts[2] * self.out(h)
        h = self.norms[1](x) * (1 + parts[4]) + parts[3]
        return x + parts[5] * self.down(F.gelu(self.up(h), approximate="tanh"))


class TorchDiT(nn.Module):
    """Images ``b c h w`` to a prediction of the same shape, for times ``(b,)`` and labels ``(b,)``."""

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        heads: int,
        patch: int,
        channels: int,
        side: int,
        classes: int,
    ):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.register_buffer("position", 0.02 * torch.randn(1, (side // patch) ** 2, width))
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, patch * patch * channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        b, _, height, width = x.shape
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        angle = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
        c = self.time(torch.cat([angle.cos(), angle.sin()], dim=-1)) + self.label(label)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, dim=-1)
        x = self.final(self.norm(x) * (1 + scale) + shift)
        p = self.patch
        x = x.view(b, height // p, width // p, p, p, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(b, self.channels, height, width)


def alphas_bar() -> torch.Tensor:
    """DDPM's cumulative products for its 1000 linear betas."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)


def autocast(dtype: str) -> torch.autocast:
    """``dtype`` for the matrix products, as ``precision.compute`` says it of ours."""
    device = torch.get_default_device().type
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")


def train_step(
    model: TorchDiT, batch: int, side: int, dtype: str, *, compiled: bool
) -> Callable[[], float]:
    """One step on a fixed batch: noise, forward, backward, AdamW and EMA; returns the loss."""
    network = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - 1e-4))
    bar = alphas_bar()
    x_0 = torch.randn(batch, model.channels, side, side)
    label = torch.arange(batch) % (model.label.num_embeddings - 1)

    def step() -> float:
        t, eps = torch.randint(0, 1000, (batch,)), torch.randn_like(x_0)
        a = bar[t].view(-1, 1, 1, 1)
        with autocast(dtype):
            out = network(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t.float(), label)
        loss = F.mse_loss(out.float(), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        return loss.item()

    return step


def ddim(
    model: TorchDiT, batch: int, side: int, steps: int, dtype: str, *, compiled: bool
) -> Callable[[], float]:
    """DDIM from noise to data in ``steps`` evaluations without guidance; returns the sum."""
    model = model.eval()
    network = torch.compile(model) if compiled else model
    bar = torch.cat([torch.ones(1), alphas_bar()])
    nodes = torch.cat([torch.linspace(1000, 1, steps).round().long(), torch.zeros(1, dtype=int)])
    label = torch.arange(batch) % (model.label.num_embeddings - 1)

    def draw() -> float:
        with torch.inference_mode(), autocast(dtype):
            x = torch.randn(batch, model.channels, side, side)
            for now, after in itertools.pairwise(nodes):
                eps = network(x, (now - 1).float().expand(batch), label).float()
                x_0 = (x - (1 - bar[now]).sqrt() * eps) / bar[now].sqrt()
                x = bar[after].sqrt() * x_0 + (1 - bar[after]).sqrt() * eps
            return x.sum().item()

    return draw


def serve(
    connection: Connection,
    shape: dict[str, int],
    batch: int,
    sample_batch: int,
    steps: int,
    device: str,
    dtype: str,
) -> None:
    """Answer ``("train" | "draw", kind)`` over a pipe by doing it and sending the result, to its end.

    ``device``: ``cpu`` or ``cuda``. ``dtype``: of matrix products, float32 or bfloat16.
    """
    torch.manual_seed(0)
    torch.set_default_device(device)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    side, calls = shape["side"], {}
    for kind in KINDS:
        how = {"dtype": dtype, "compiled": kind == "torch.compile"}
        calls["train", kind] = train_step(TorchDiT(**shape), batch, side, **how)
        calls["draw", kind] = ddim(TorchDiT(**shape), sample_batch, side, steps, **how)
    while True:
        try:
            connection.send(calls[connection.recv()]())
        except EOFError:
            return
