"""`fp8_linear` on GPUs: activations are rounded in one pass, with what comes before it: a GELU, or sum and norm."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.kernels.fp8_linear import LARGEST, Fp8Linear, Rounded, Rounding, multiply
from flashvsr_core.kernels.token_ops_triton import _norm_row, on


@triton.jit
def _read(x, columns, dim, GELU: tl.constexpr):
    value = tl.load(x + columns, mask=columns < dim, other=0.0).to(tl.float32)
    if GELU:
        # (1 + tanh(y)) / 2 is the sigmoid of 2 y.
        value *= tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    return value


@triton.jit
def _quantise_rows(
    x, out, scales, dim, GELU: tl.constexpr, LARGEST: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr
):
    """A row in two parts, of WIDTH and at most REST columns: 8960 in 16384 would leave half of the threads idle."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    value = _read(x + row * dim, columns, dim, GELU)
    largest = tl.max(tl.abs(value), 0)
    if REST:
        others = WIDTH + tl.arange(0, REST)
        rest = _read(x + row * dim, others, dim, GELU)
        largest = tl.maximum(largest, tl.max(tl.abs(rest), 0))
        _store(rest, largest, out + row * dim, others, dim, LARGEST)
    _store(value, largest, out + row * dim, columns, dim, LARGEST)
    tl.store(scales + row, largest / LARGEST)


@triton.jit
def _store(value, largest, out, columns, dim, LARGEST: tl.constexpr):
    # One division a row. A product may end a hair above the largest number, which would convert to NaN.
    value *= LARGEST / tl.where(largest > 0, largest, LARGEST)
    value = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)
    tl.store(out + columns, value.to(out.dtype.element_ty), mask=columns < dim)


@triton.jit
def _store_rounded(value, out, scales, row, dim, columns, mask, LARGEST: tl.constexpr):
    largest = tl.max(tl.where(mask, tl.abs(value), 0.0), 0)
    _store(value, largest, out + row * dim, columns, dim, LARGEST)
    tl.store(scales + row, largest / LARGEST)


@triton.jit
def _norm_rounded(
    x, y, gate, total, out, scales, scale, shift, dim, eps,
    ADDED: tl.constexpr, GATED: tl.constexpr, OFFSET: tl.constexpr, LARGEST: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """`token_ops_triton._add_norm`, or without ADDED its `_norm`, rounded to fp8 by the largest of each row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    mask = columns < dim
    value = tl.load(x + row * dim + columns, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        added = tl.load(y + row * dim + columns, mask=mask, other=0.0).to(tl.float32)
        if GATED:
            added *= tl.load(gate + columns, mask=mask, other=0.0).to(tl.float32)
        stored = (value + added).to(total.dtype.element_ty)
        tl.store(total + row * dim + columns, stored, mask=mask)
        value = stored.to(tl.float32)
    value = _norm_row(value, scale, shift, columns, mask, dim, eps, OFFSET)
    _store_rounded(value, out, scales, row, dim, columns, mask, LARGEST)


def norm_rounded(x: Tensor, scale: Tensor, shift: Tensor, eps: float, offset: float) -> Rounded:
    """See `fp8_linear.norm_rounded_torch`."""
    return _launch_norm(x, None, None, None, scale, shift, eps, offset)


def add_norm_rounded(
    x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, offset: float
) -> tuple[Tensor, Rounded]:
    """See `fp8_linear.add_norm_rounded_torch`."""
    x = x.contiguous()
    total = torch.empty_like(x)
    return total, _launch_norm(x, y.contiguous(), gate, total, scale, shift, eps, offset)


def _launch_norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, total: Tensor | None, scale: Tensor, shift: Tensor,
    eps: float, offset: float,
) -> Rounded:  # fmt: skip
    x = x.contiguous()
    dim = x.shape[-1]
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    with on(x):
        _norm_rounded[(x.numel() // dim,)](
            x, x if y is None else y, x if gate is None else gate, x if total is None else total, out, scales, scale,
            shift, dim, eps, ADDED=y is not None, GATED=gate is not None, OFFSET=offset, LARGEST=LARGEST,
            WIDTH=triton.next_power_of_2(dim),
        )  # fmt: skip
    return Rounded(out, scales)


def rounded_linear(x: Rounded, layer: Fp8Linear) -> Tensor:
    """The layer applied to what is rounded already."""
    return multiply(x.values.flatten(0, -2), x.scales.flatten(), layer).unflatten(0, x.scales.shape)


ROUNDING = Rounding(norm_rounded, add_norm_rounded, rounded_linear)


def quantise_rows(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """See `fp8_linear.quantise_rows_torch`."""
    x = x.contiguous()
    rows, dim = x.shape
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    width = triton.next_power_of_2(dim + 1) // 2  # the largest power of two in dim
    rest = triton.next_power_of_2(dim - width) if dim > width else 0
    with on(x):
        _quantise_rows[(rows,)](
            x, out, scales, dim, GELU=gelu, LARGEST=LARGEST, WIDTH=width, REST=rest,
            num_warps=8 if width > 2048 else 4,
        )  # fmt: skip
    return out, scales


def linear(x: Tensor, layer: Fp8Linear, gelu: bool = False) -> Tensor:
    """The layer applied to x (... in) in bf16, or to its GELU (tanh form); compute capability 8.9 and later."""
    return multiply(*quantise_rows(x.flatten(0, -2), gelu), layer).unflatten(0, x.shape[:-1])
