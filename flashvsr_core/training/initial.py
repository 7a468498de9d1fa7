"""Initial values: the model starts as the linear filter that its narrowest part, the latents, lets through.

From random values a small decoder learns nothing through the latents: other ways to the picture, or none, are easier.
So each part is fitted in closed form to what it can do: the LQ projection shows principal components of the input and
of what the input predicts of the truth, the DiT's head makes latents of the prediction, the decoder draws it.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.models.decoder_layers import MemBlock, ShuffleGrow
from flashvsr_core.models.lq_proj import CLIP, LqProj, _unshuffle
from flashvsr_core.models.tcdecoder import FRAMES_PER_LATENT, TcDecoder
from flashvsr_core.training.unroll import Model, Window, unroll

LATENT_STD = 40.0  # of what the DiT starts with: well above the noise, of which a small DiT can remove little
_SPREAD = 0.05  # of the random part beside the LQ projection's fitted weights; what follows is fitted to it ...
_FAINT = 0.01  # ... but nothing makes good for that in the decoder
_RIDGE = 1e-4  # share of the mean of the diagonal
_BIAS = 4.0  # keeps components on the side of SiLU that loses nothing, and tells the norm that follows the contrast
_POWER = 0.25  # of the eigenvalues; 0.5 would whiten, and then less of the detail survives the second convolution
_FLOOR = 1e-6  # share of the largest eigenvalue below which whitening no longer amplifies
_FILTERED = 2 / 3  # share of the LQ projection's last channels that show a prediction, not the input
_OPEN = 3.0  # standard deviations by which the decoder's first activations are kept on their open side
_ERROR_FLOOR = 4e-5  # of a clip's mean squared error, by whose inverse clips are weighted


@torch.no_grad()
def initialise(model: Model, condition: Tensor, truth: Tensor) -> None:
    """Fill `model`; condition and truth (B 3 25 H W in [-1, 1]) are clips that one linear filter helps."""
    dit = cast(Any, model.dit)  # Any: modules of containers have no types
    missing = _decoded(truth - condition)
    weight = (missing.square().mean(dim=(1, 2, 3, 4)) + _ERROR_FLOOR).rsqrt()
    _fit_lq(model.lq_proj, condition, missing, weight)
    dit.patch_embedding.weight.mul_(0.1)
    for block in dit.blocks:
        block.modulation.zero_()
        block.modulation[:, (2, 5)] = 1.0
        for layer in (block.self_attn.o, block.cross_attn.o, block.ffn[2]):
            layer.weight.mul_(_SPREAD)
    dit.time_projection[1].weight.mul_(0.01)
    dit.time_projection[1].bias.zero_()
    dit.time_embedding[2].weight.mul_(0.01)
    draw_linear(model.tcdecoder, _fit_head(model, condition, missing, weight))


def _decoded(x: Tensor) -> Tensor:
    """B C 25 H W -> B C 24 H W: four frames for each latent frame of the first step, the first of all repeated."""
    return torch.cat([x[:, :, :1].expand(-1, -1, FRAMES_PER_LATENT - 1, -1, -1), x[:, :, : 25 - FRAMES_PER_LATENT]], 2)


def _fit_lq(lq: LqProj, condition: Tensor, missing: Tensor, weight: Tensor) -> None:
    patches = _unshuffle(condition)
    _set_components(lq.conv1, rearrange(patches.unfold(2, 4, 2), "b c t h w k -> (b t h w) (c k)"), taps=(2, 3))
    lq.norm1.gamma.fill_((1 + _BIAS**2) ** 0.5)
    lq.norm2.gamma.fill_((1 + _BIAS**2) ** 0.5)
    past, hidden_past = lq._open(condition[:, :, :1])
    hidden = F.silu(lq.norm1(lq._convolve(lq.conv1, patches[:, :, 1:], past, clip=CLIP)))
    hidden = F.pad(torch.cat([hidden_past, hidden], dim=2), (1, 1, 1, 1, 0, 0), mode="replicate")
    taps = hidden.unfold(2, 4, 2).unfold(3, 3, 1).unfold(4, 3, 1)
    x = rearrange(taps, "b c t h w k i j -> (b t h w) (c k i j)")
    y = rearrange(missing, "b c (f t) (h p) (w q) -> (b f h w) (c t p q)", t=4, p=16, q=16)
    filters, _ = _ridge(x, y, weight)
    shown = int(lq.conv2.out_channels * _FILTERED)
    own = rearrange(taps[..., 1, 1], "b c t h w k -> (b t h w) (c k)")
    _set_components(lq.conv2, own, taps=(0, 1, 2, 3))
    directions = torch.pca_lowrank(x @ filters, q=shown, center=False, niter=4)[2]
    rows = (filters @ directions).T
    spread = (x @ rows.T).std(dim=0)
    rows = rows / (spread / spread.mean()).sqrt()[:, None] / spread.mean()
    lq.conv2.weight[:shown] = rows.reshape(shown, *lq.conv2.weight.shape[1:])
    lq.conv2.bias[:shown] = _BIAS - rows @ x.mean(0)  # type: ignore[index]
    nn.init.orthogonal_(cast(nn.Linear, lq.linear_layers[0]).weight)


def _fit_head(model: Model, condition: Tensor, missing: Tensor, weight: Tensor) -> Tensor:
    """Latents = leading components of what the DiT's features predict of `missing`. Returns what each of them stands
    for: (channels) x (c t p q of a 4x8x8 patch).
    """
    seen: list[Tensor] = []
    linear = model.dit.head.head
    hook = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    unroll(model, condition, Window(kv_ratio=3, local_range=11, share=1.0))
    hook.remove()
    x = seen[0].flatten(0, 1)
    y = rearrange(
        missing, "b d (f a t) (h r y p) (w c z q) -> (b f h w a r c) (y z d t p q)", a=2, r=8, c=8, y=2, z=2, t=4, p=8,
        q=8,
    )  # fmt: skip
    filters, mean = _ridge(x, y, weight)
    predicted = rearrange(x @ filters, "n (k v) -> (n k) v", k=4)
    channels = model.dit.spec.out_dim
    directions = torch.pca_lowrank(predicted - predicted.mean(0), q=channels, center=False, niter=4)[2]
    spread = ((predicted - predicted.mean(0)) @ directions).std(dim=0)
    scale = LATENT_STD / (spread * spread.mean()).sqrt()  # half whitened
    to_latents = torch.block_diag(*[directions * scale] * 4)
    weights, bias = (filters @ to_latents).T, (mean - x.mean(0) @ filters) @ to_latents
    # Latents are noise - prediction; the head's outputs are (y z channel) too.
    linear.weight.copy_(-weights)
    linear.bias.copy_(-bias)
    return (directions / scale).T


@torch.no_grad()
def draw_linear(decoder: TcDecoder, meaning: Tensor) -> None:
    """Let the decoder start as latents @ meaning (channels x (c t p q)).

    It draws blocks of 4x4x4 pixels at 1/4, of 2x2x2 at 1/2, then pixels.
    """
    for layer in decoder.detail.values():
        cast(nn.Conv2d, layer).weight.mul_(_SPREAD)
        nn.init.zeros_(cast(nn.Conv2d, layer).bias)  # type: ignore[arg-type]
    if decoder.gate is not None:
        nn.init.zeros_(decoder.gate.weight)
        nn.init.zeros_(decoder.gate.bias)  # type: ignore[arg-type]
    for layer in decoder.decoder:
        if isinstance(layer, MemBlock):
            for conv in (x for x in layer.conv if isinstance(x, nn.Conv2d)):
                nn.init.kaiming_normal_(conv.weight)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            cast(nn.Conv2d, layer.conv[4]).weight.mul_(_FAINT)
    first, second = (x for x in decoder.decoder if isinstance(x, nn.Conv2d))
    to_4, to_2, to_1 = (x.conv for x in decoder.decoder if isinstance(x, ShuffleGrow))
    for conv in (first, second):
        nn.init.dirac_(conv.weight)
        conv.weight.add_(torch.randn_like(conv.weight) * _FAINT / conv.weight[0].numel() ** 0.5)
    first.weight.div_(LATENT_STD)
    nn.init.constant_(first.bias, _OPEN)  # type: ignore[arg-type]
    blocks = rearrange(
        meaning * LATENT_STD / decoder.residual, "n (d t y p z q) -> (n y z) (d t p q)", d=3, t=4, y=2, p=4, z=2, q=4
    )
    count = to_2.in_channels
    parts = torch.linalg.svd(blocks, full_matrices=False)[2][:count]  # at most `count` of 192
    parts = F.pad(parts, (0, 0, 0, count - len(parts)))
    weights = rearrange(blocks @ parts.T, "(n y z) m -> (m y z) n", y=2, z=2)
    to_4.weight.copy_(weights[..., None, None])
    to_4.bias.copy_(-_OPEN * second.weight.sum(dim=(1, 2, 3)) @ weights.T)  # type: ignore[union-attr]
    values = rearrange(parts, "m (d a s y p z q) -> (a s d p q y z) m", d=3, a=2, s=2, y=2, p=2, z=2, q=2)
    wide = to_2.weight.new_zeros(2, to_1.in_channels, 2, 2, count)  # (time, channel, row, column), from
    pixels = min(to_1.in_channels, 24)
    wide[:, :pixels] = rearrange(values, "(a v y z) m -> a v y z m", a=2, y=2, z=2)[:, :pixels]
    nn.init.normal_(to_2.weight, std=_FAINT / count**0.5)
    to_2.weight.add_(wide.flatten(0, 3)[..., None, None])
    nn.init.zeros_(to_2.bias)  # type: ignore[arg-type]
    nn.init.normal_(to_1.weight, std=_FAINT / to_1.weight[0].numel() ** 0.5)
    for i in range(pixels):
        to_1.weight[i, i, 1, 1] += 1
    nn.init.zeros_(to_1.bias)  # type: ignore[arg-type]


def _ridge(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression of rows y on x, rows of clip b weighted by weight[b]: (inputs x outputs), and y's mean."""
    rows = weight.repeat_interleave(len(x) // len(weight))[:, None]
    centred = (x - x.mean(0)) * rows
    gram = (centred.T @ centred).double()
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=x.device, dtype=gram.dtype)
    return torch.linalg.solve(gram, (centred.T @ ((y - y.mean(0)) * rows)).double()).float(), y.mean(0)


def _set_components(conv: nn.Conv3d, columns: Tensor, taps: tuple[int, ...]) -> None:
    """Let `conv` give the leading principal components, partly whitened, of its middle column at time steps `taps`.

    columns: N (c k), all 4 time steps.
    """
    columns = columns.unflatten(1, (-1, conv.kernel_size[0]))[..., list(taps)].flatten(1)
    mean = columns.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((columns - mean).T.double()))
    out = min(conv.out_channels, len(values))
    values, vectors = values.flip(0)[:out], vectors.flip(1)[:, :out]
    rows = (vectors / values.clamp(min=_FLOOR * values[0]) ** _POWER).T.float()
    rows /= (values ** (1 - 2 * _POWER)).mean().sqrt().float()
    nn.init.normal_(conv.weight, std=_SPREAD / (conv.in_channels * len(taps) * 9) ** 0.5)
    # Leading components come last: the first channels may be needed for something else.
    for channel, row in zip(range(conv.out_channels - 1, -1, -1), rows):
        conv.weight[channel, :, list(taps), 1, 1] = row.unflatten(0, (-1, len(taps)))
    rest = conv.out_channels - out
    conv.bias.copy_(_BIAS - F.pad((rows @ mean).flip(0), (rest, 0)))  # type: ignore[union-attr]
