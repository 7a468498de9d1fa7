"""Linear layers in fp8 (e4m3): weights with a scale per output, quantised once; activations with one per token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvsr_core.kernels import token_ops

LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448


@dataclass(eq=False)  # not frozen: offloading puts its tensors elsewhere
class Fp8Linear:
    """weight: out x in, fp8; scales: float32 per output, what a row of the weight is to be multiplied with."""

    weight: Tensor
    scales: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> "Fp8Linear":
        return cls(*quantise_rows_torch(weight, gelu=False), bias)


class Rounded(NamedTuple):
    """Tokens in fp8 and float32 per token: what to multiply it with. ... C and ...."""

    values: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Rounding:
    """`token_ops.norm` and `.add_norm` whose second result is rounded at once, and the product that follows them."""

    norm: Callable[[Tensor, Tensor, Tensor, float, float], Rounded]
    add_norm: Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, float, float], tuple[Tensor, Rounded]]
    linear: Callable[[Rounded, Fp8Linear], Tensor]


def quantise_rows_torch(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """x (rows x columns, or its GELU in tanh form) as fp8, and float32 per row: what to multiply it with."""
    wide = F.gelu(x.float(), approximate="tanh") if gelu else x.float()
    scales = wide.abs().amax(dim=-1) / LARGEST
    values = wide / scales.where(scales > 0, torch.ones_like(scales))[:, None]
    # Division may end a hair above the largest number, which converts to NaN.
    return values.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales


def multiply_torch(x: Tensor, scales: Tensor, layer: Fp8Linear) -> Tensor:
    """Reference of the scaled product on any device: fp8 rows x times the layer's weight, in its bias's type."""
    product = (x.float() * scales[:, None]) @ (layer.weight.float() * layer.scales[:, None]).t()
    return (product + layer.bias.float()).to(layer.bias.dtype)


def multiply(x: Tensor, scales: Tensor, layer: Fp8Linear) -> Tensor:
    """As `multiply_torch`, by cuBLASLt or CUTLASS: compute capability 8.9 and later, bf16 out."""
    return torch._scaled_mm(
        x, layer.weight.t(), scale_a=scales[:, None], scale_b=layer.scales[None], bias=layer.bias,
        out_dtype=layer.bias.dtype, use_fast_accum=True,
    )  # fmt: skip


def linear_torch(x: Tensor, layer: Fp8Linear, gelu: bool = False) -> Tensor:
    """Reference of `fp8_linear_triton.linear`: the layer applied to x (... in), or to its GELU."""
    return multiply_torch(*quantise_rows_torch(x.flatten(0, -2), gelu), layer).unflatten(0, x.shape[:-1])


def norm_rounded_torch(x: Tensor, scale: Tensor, shift: Tensor, eps: float, offset: float) -> Rounded:
    """Reference of `Rounding.norm`: nothing is rounded on the way to fp8."""
    wide = token_ops.norm(x.float(), scale.float(), shift.float(), eps, offset)
    values, scales = quantise_rows_torch(wide.flatten(0, -2), gelu=False)
    return Rounded(values.view(x.shape), scales.view(x.shape[:-1]))


def add_norm_rounded_torch(
    x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, offset: float
) -> tuple[Tensor, Rounded]:
    """Reference of `Rounding.add_norm`."""
    x = x + (y if gate is None else gate * y)
    return x, norm_rounded_torch(x, scale, shift, eps, offset)


def rounded_linear_torch(x: Rounded, layer: Fp8Linear) -> Tensor:
    """Reference of `Rounding.linear`."""
    product = multiply_torch(x.values.flatten(0, -2), x.scales.flatten(), layer)
    return product.unflatten(0, x.scales.shape)


ROUNDING = Rounding(norm_rounded_torch, add_norm_rounded_torch, rounded_linear_torch)
