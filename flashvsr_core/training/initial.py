"""Initial values. Two traps: small decoders learn nothing from zero, and patches of pixels are badly conditioned."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.models.lq_proj import _unshuffle
from flashvsr_core.models.tcdecoder import MemBlock, ShuffleGrow
from flashvsr_core.training.unroll import Model, Window, unroll

_SPREAD = 0.05  # of the random part beside whitened weights
_LATENT_STD = 6.0  # of what the DiT starts with: well above the noise, of which a small DiT can remove little
_RIDGE = 1e-3
_BIAS = 2.0  # keeps components on the side of SiLU that loses nothing, and tells the norm that follows the contrast
_POWER = 0.25  # of the eigenvalues; 0.5 would whiten, and then less of the detail survives the second convolution
_FLOOR = 1e-6  # share of the largest eigenvalue below which whitening no longer amplifies


@torch.no_grad()
def initialise(model: Model, condition: Tensor, truth: Tensor) -> None:
    """Fill `model`; condition and truth (B 3 25 H W in [-1, 1]) are typical clips."""
    # Any: modules of containers have no types.
    lq, decoder, dit = model.lq_proj, model.tcdecoder, cast(Any, model.dit)
    patches = _unshuffle(condition)
    _whiten(lq.conv1, patches, taps=(2, 3))
    hidden = F.silu(lq.norm1(lq.conv1(F.pad(patches, (1, 1, 1, 1, 0, 0), mode="replicate"))))
    _whiten(lq.conv2, hidden, taps=(0, 1, 2, 3))
    for norm in (lq.norm1, lq.norm2):
        norm.gamma.fill_((1 + _BIAS**2) ** 0.5)
    nn.init.orthogonal_(cast(nn.Linear, lq.linear_layers[0]).weight)
    dit.patch_embedding.weight.mul_(0.1)
    for block in dit.blocks:
        block.modulation.zero_()
        block.modulation[:, (2, 5)] = 1.0
        for layer in (block.self_attn.o, block.cross_attn.o, block.ffn[2]):
            layer.weight.mul_(0.5)
    dit.time_projection[1].weight.mul_(0.01)
    dit.time_projection[1].bias.zero_()
    dit.time_embedding[2].weight.mul_(0.01)
    for layer in decoder.decoder:
        if isinstance(layer, MemBlock):
            cast(nn.Conv2d, layer.conv[4]).weight.mul_(0.3)
    for layer in decoder.decoder.children():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    next(x for x in decoder.decoder if isinstance(x, nn.Conv2d)).weight.mul_(1 / _LATENT_STD)
    _fit_head(model, condition, truth)
    last = [x for x in decoder.decoder if isinstance(x, ShuffleGrow | nn.Conv2d)][-1]
    last = last.conv if isinstance(last, ShuffleGrow) else last
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]


def _fit_head(model: Model, condition: Tensor, truth: Tensor) -> None:
    """Let the DiT start by telling the decoder what the input shows (5/8 of the channels), what it lacks (1/4), and 1.

    The head is the ridge regression of the leading principal components of each latent pixel's 4x8x8 patch of condition
    and of truth - condition. From a random head the decoder never learned to listen (three attempts: 0.00 dB).
    """
    seen: list[Tensor] = []
    linear = model.dit.head.head
    hook = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    unroll(model, condition, Window(kv_ratio=3, local_range=11, share=1.0))
    hook.remove()
    known = [
        torch.cat([x[:, :, :1].expand(-1, -1, 3, -1, -1), x[:, :, :21]], dim=2) for x in (condition, truth - condition)
    ]
    channels = model.dit.spec.out_dim
    constant = channels // 8
    shares = (channels * 5 // 8, channels - constant - channels * 5 // 8)
    parts = [_components(rearrange(x, "b c (f t) (h p) (w q) -> b f h w (c t p q)", t=4, p=8, q=8), n)
             for x, n in zip(known, shares)]  # fmt: skip
    parts.append(2 * torch.ones_like(parts[0][..., :constant]))
    target = (
        rearrange(
            torch.cat(parts, dim=-1), "b (f a) (h r y) (w c z) d -> (b f h w a r c) (y z d)", a=2, r=8, c=8, y=2, z=2
        )
        * -_LATENT_STD
    )  # latents are noise - prediction
    x = seen[0].flatten(0, 1).double()
    mean, goal = x.mean(0), target.double()
    gram = (x - mean).T @ (x - mean)
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=x.device, dtype=x.dtype)
    weight = torch.linalg.solve(gram, (x - mean).T @ (goal - goal.mean(0))).T
    linear.weight.copy_(weight)
    linear.bias.copy_(goal.mean(0) - weight @ mean)


def _components(patches: Tensor, count: int) -> Tensor:
    """... n -> ... `count`: the leading principal components, of unit variance."""
    flat = patches.flatten(0, -2)
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((flat - mean).T.double()))
    rows = vectors.flip(1)[:, :count] / values.flip(0)[:count].clamp(min=1e-9).sqrt()
    return (patches - mean) @ rows.float()


def _whiten(conv: nn.Conv3d, x: Tensor, taps: tuple[int, ...]) -> None:
    """Let `conv` give the leading principal components, partly whitened, of its middle column at time steps `taps`.

    x: B C T h w.
    """
    columns = rearrange(
        x.unfold(2, conv.kernel_size[0], conv.stride[0])[..., list(taps)], "b c t h w k -> (b t h w) (c k)"
    )
    mean = columns.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((columns - mean).T.double()))
    out = conv.out_channels
    values, vectors = values.flip(0)[:out], vectors.flip(1)[:, :out]
    rows = (vectors / values.clamp(min=_FLOOR * values[0]) ** _POWER).T.float()
    rows /= (values ** (1 - 2 * _POWER)).mean().sqrt().float()
    nn.init.normal_(conv.weight, std=_SPREAD / (conv.in_channels * len(taps) * 9) ** 0.5)
    conv.weight[:, :, list(taps), 1, 1] = rows.unflatten(1, (-1, len(taps)))
    conv.bias.copy_(_BIAS - rows @ mean)  # type: ignore[union-attr]
