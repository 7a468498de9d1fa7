"""Linear layers in fp8 (e4m3): weights with a scale per output, quantised once; activations with one per token."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448


@dataclass(frozen=True)
class Fp8Linear:
    """weight: out x in, fp8; scales: float32 per output, what a row of the weight is to be multiplied with."""

    weight: Tensor
    scales: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> "Fp8Linear":
        return cls(*quantise_rows_torch(weight, gelu=False), bias)


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
