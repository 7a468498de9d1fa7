"""`fp8_linear` on GPUs: activations are rounded in one pass, with the GELU before it where there is one."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.kernels.fp8_linear import LARGEST, Fp8Linear, multiply
from flashvsr_core.kernels.token_ops_triton import on


@triton.jit
def _quantise_rows(x, out, scales, dim, GELU: tl.constexpr, LARGEST: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    mask = columns < dim
    value = tl.load(x + row * dim + columns, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        # (1 + tanh(y)) / 2 is the sigmoid of 2 y.
        value *= tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    scale = tl.max(tl.abs(value), 0) / LARGEST
    value = value / tl.where(scale > 0, scale, 1.0)
    value = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)
    tl.store(out + row * dim + columns, value.to(out.dtype.element_ty), mask=mask)
    tl.store(scales + row, scale)


def quantise_rows(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """See `fp8_linear.quantise_rows_torch`."""
    x = x.contiguous()
    rows, dim = x.shape
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    width = triton.next_power_of_2(dim)
    with on(x):
        _quantise_rows[(rows,)](
            x, out, scales, dim, GELU=gelu, LARGEST=LARGEST, WIDTH=width, num_warps=8 if width > 2048 else 4
        )
    return out, scales


def linear(x: Tensor, layer: Fp8Linear, gelu: bool = False) -> Tensor:
    """The layer applied to x (... in) in bf16, or to its GELU (tanh form); compute capability 8.9 and later."""
    return multiply(*quantise_rows(x.flatten(0, -2), gelu), layer).unflatten(0, x.shape[:-1])
