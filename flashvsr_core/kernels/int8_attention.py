"""Block-sparse attention on int8 queries and keys, in the manner of SageAttention (Zhang et al., 2024).

Scores are products of int8; weights, values and sums stay as they are elsewhere. What all keys have in common is taken
off them before: it adds the same to all scores of a query, which softmax does not see, and it would cost most of the
8 bits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flashvsr_core.kernels.block_attention import Blocks, attend_torch
from flashvsr_core.kernels.fp8_linear import LARGEST

LEVELS = 127
_SAMPLE = 32  # windows from which the mean of all keys, and the largest of all values, are estimated
_HEADROOM = 4  # values may be so many times as large as the largest of the sample; the others are cut
WEIGHT_BITS = 8  # weights of attention, at most 1, are multiplied by 2 to this before they become fp8: at most 448


class Quantised(NamedTuple):
    """int8 B heads W 128 d, and what to multiply it with: float32 B heads W 128 (a scale per token)."""

    values: Tensor
    scales: Tensor

    def restored(self) -> Tensor:
        return self.values.float() * self.scales[..., None]


def common(k: Tensor) -> Tensor:
    """The mean of some windows of k, B heads d float32. Any vector would do, so not all of them are read."""
    return k[:, :, :: max(1, k.shape[2] // _SAMPLE)].mean(dim=(2, 3), dtype=torch.float32)


def quantise_torch(x: Tensor, less: Tensor | None, by_window: bool) -> Quantised:
    """Round x - less (B heads d) to 127 levels either side, by the largest of a window or of each token."""
    wide = x.float() if less is None else x.float() - less[:, :, None, None]
    largest = wide.abs().amax(dim=(-2, -1), keepdim=True) if by_window else wide.abs().amax(dim=-1, keepdim=True)
    scales = largest / LEVELS
    # A window of zeros stays one.
    scaled = wide / scales.where(scales > 0, torch.ones_like(scales))
    # Halves away from zero, as SageAttention rounds.
    values = torch.trunc(scaled + scaled.sign() * 0.5).to(torch.int8)
    return Quantised(values, scales[..., 0].expand(x.shape[:-1]).contiguous())


def attend_int8_torch(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
    """Reference in plain PyTorch; arguments and result as of `attend_torch`. Queries have a scale per token, keys one
    per window."""
    queries, keys = quantise_torch(q, None, by_window=False), quantise_torch(k, common(k), by_window=True)
    return attend_torch(queries.restored(), keys.restored(), v.float(), blocks).to(q.dtype)


class Values(NamedTuple):
    """Values in fp8 (e4m3), a window's columns as rows: B heads W d 128, and what to multiply a head's with: float32
    B heads. Matrix units read fp8 along the keys."""

    values: Tensor
    scales: Tensor

    def restored(self) -> Tensor:
        return self.values.float().transpose(-1, -2) * self.scales[:, :, None, None, None]


def value_scales(v: Tensor) -> Tensor:
    """float32 B heads, by which values are to be divided: fp8 is a floating format, so that a sample will do."""
    sample = v[:, :, :: max(1, v.shape[2] // _SAMPLE)]
    largest = torch.linalg.vector_norm(sample, ord=torch.inf, dim=(2, 3, 4), dtype=torch.float32)
    return torch.where(largest > 0, largest * (_HEADROOM / LARGEST), 1.0)


def values_torch(v: Tensor) -> Values:
    """v: B heads W 128 d."""
    scales = value_scales(v)
    scaled = (v.float() / scales[:, :, None, None, None]).clamp(-LARGEST, LARGEST)
    return Values(scaled.transpose(-1, -2).contiguous().to(torch.float8_e4m3fn), scales)


def attend_int8_fp8_torch(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
    """Reference in plain PyTorch, but for the rounding of weights: it depends on the order of the blocks."""
    return attend_int8_torch(q.float(), k.float(), values_torch(v).restored(), blocks).to(q.dtype)
