"""The same nets in PyTorch, to compare speed and numbers with. Needs PyTorch (the extra `bench`)."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from research.nets.transformer import Stack


def cnn() -> nn.Module:
    """`mnist_cnn`'s net: images [batch, 1, 28, 28] -> logits."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (16, 32, 64):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 9, 10))


def dcgan(widths: tuple[int, ...], latent: int, side: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """DCGAN as PyTorch's tutorial writes it, for images of side x side: the generator, from noise [batch, latent], and
    the discriminator, to scores [batch]. `widths` are the discriminator's; the generator has them in reverse."""
    small = side >> len(widths)
    up: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1)), nn.ConvTranspose2d(latent, widths[-1], small, bias=False)]
    for width, following in pairwise(widths[::-1]):
        up += [nn.BatchNorm2d(width), nn.ReLU(True), nn.ConvTranspose2d(width, following, 4, 2, 1, bias=False)]
    up += [nn.BatchNorm2d(widths[0]), nn.ReLU(True), nn.ConvTranspose2d(widths[0], channels, 4, 2, 1), nn.Tanh()]
    down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for width, following in pairwise(widths):
        down += [nn.Conv2d(width, following, 4, 2, 1, bias=False), nn.BatchNorm2d(following), nn.LeakyReLU(0.2, True)]
    down += [nn.Conv2d(widths[-1], 1, small, bias=False), nn.Flatten(0)]
    nets = nn.Sequential(*up), nn.Sequential(*down)
    for layer in (layer for net in nets for layer in net.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0, 0.02)
    return nets


class Block(nn.Module):
    """A pre-norm block with causal attention, as nanoGPT and PyTorch users write it."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        width = stack.width
        self.heads = stack.heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=stack.bias) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=stack.bias)
        self.out = nn.Linear(width, width, bias=stack.bias)
        self.up = nn.Linear(width, 4 * width, bias=stack.bias)
        self.down = nn.Linear(4 * width, width, bias=stack.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> the same."""
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        )
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norms[1](x)), approximate="tanh"))


class LanguageModel(nn.Module):
    """`transformer.LanguageModel` with learned positions, GELU, pre-norm, tied embeddings and no dropout."""

    def __init__(self, stack: Stack, context: int, outputs: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(outputs, stack.width)
        self.positions = nn.Embedding(context, stack.width)
        self.blocks = nn.ModuleList(Block(stack) for _ in range(stack.layers))
        self.norm = nn.LayerNorm(stack.width, bias=stack.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """i64[batch, time] -> logits [batch, time, outputs]."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T

    def tensors(self) -> dict[str, Tensor]:
        """Its parameters by the names that ours have; those of layers are lists, to be stacked."""
        found: dict[str, Any] = {
            "embedding/tokens/embedding": self.tokens.weight,
            "embedding/positions/embedding": self.positions.weight,
            **_norm("blocks/LayerNorm_0", [self.norm]),
        }
        layers = [b for b in self.blocks if isinstance(b, Block)]
        for n in range(2):
            found |= _norm(f"blocks/layers/LayerNorm_{n}", [b.norms[n] for b in layers], stacked=True)
        names = {"attention/qkv": "qkv", "attention/out": "out", "FeedForward_0/up": "up"}
        for ours, theirs in {**names, "FeedForward_0/down": "down"}.items():
            found |= _dense(f"blocks/layers/{ours}", [getattr(b, theirs) for b in layers], stacked=True)
        # Rows [3 * heads * features] there are the axes [heads, 3, features] here.
        heads = lambda y, at: y.unflatten(at, (3, layers[0].heads, -1)).transpose(at, at + 1)
        for part, at in (("kernel", 1), ("bias", 0)):
            name = f"blocks/layers/attention/qkv/{part}"
            if name in found:
                found[name] = [heads(y, at) for y in found[name]]
        return found


class LSTM(nn.Module):
    """`lstm.LanguageModel` without dropout."""

    def __init__(self, layers: int, width: int, outputs: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(outputs, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """i64[batch, time] -> logits [batch, time, outputs]."""
        return self.head(self.lstm(self.tokens(tokens))[0])


def _norm(name: str, norms: list, stacked: bool = False) -> dict[str, Any]:
    found = {f"{name}/scale": [n.weight for n in norms]}
    if norms[0].bias is not None:
        found[f"{name}/bias"] = [n.bias for n in norms]
    return found if stacked else {key: value[0] for key, value in found.items()}


def _dense(name: str, layers: list, stacked: bool = False) -> dict[str, Any]:
    found = {f"{name}/kernel": [layer.weight.T for layer in layers]}
    if layers[0].bias is not None:
        found[f"{name}/bias"] = [layer.bias for layer in layers]
    return found if stacked else {key: value[0] for key, value in found.items()}


@torch.no_grad()
def copy(params: Mapping[str, Any], net: LanguageModel) -> None:
    """Gives `net` the parameters of ours: {"embedding/tokens/embedding": array, …}, all of them."""
    theirs = net.tensors()
    if set(params) != set(theirs):
        raise ValueError(f"parameters that only one of them has: {set(params) ^ set(theirs)}")
    for name, tensor in theirs.items():
        value = np.array(params[name])
        for t, v in zip(tensor, value, strict=True) if isinstance(tensor, list) else [(tensor, value)]:
            t.copy_(torch.from_numpy(v))


def gradients(net: LanguageModel) -> dict[str, np.ndarray]:
    """The gradients of `net`, by the names that our parameters have."""
    owners = {id(p): p for p in net.parameters()}

    def gradient(view: Tensor) -> np.ndarray:
        base = view if id(view) in owners else view._base  # a transposed weight is a view of it
        assert base is not None and base.grad is not None
        return base.grad.as_strided(view.shape, view.stride()).numpy()

    return {
        name: np.stack([gradient(t) for t in tensor]) if isinstance(tensor, list) else gradient(tensor)
        for name, tensor in net.tensors().items()
    }
