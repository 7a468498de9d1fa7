"""`token_ops` in Triton: each function is one pass over its tensors, in float32, rounded once at the end."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.kernels import token_ops
from flashvsr_core.kernels.token_ops import WINDOW_TOKENS, Windows


def on(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; in its interpreter there is none."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def _norm_row(x, scale, shift, columns, mask, dim, eps, OFFSET: tl.constexpr):
    mean = tl.sum(x, 0) / dim
    centred = tl.where(mask, x - mean, 0.0)
    x = centred * tl.rsqrt(tl.sum(centred * centred, 0) / dim + eps)
    factor = tl.load(scale + columns, mask=mask, other=0.0).to(tl.float32) + OFFSET
    return x * factor + tl.load(shift + columns, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _norm(x, out, scale, shift, dim, eps, OFFSET: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * dim
    columns = tl.arange(0, WIDTH)
    mask = columns < dim
    value = tl.load(x + row + columns, mask=mask, other=0.0).to(tl.float32)
    value = _norm_row(value, scale, shift, columns, mask, dim, eps, OFFSET)
    tl.store(out + row + columns, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add_norm(
    x, y, gate, total, out, scale, shift, dim, eps, GATED: tl.constexpr, OFFSET: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * dim
    columns = tl.arange(0, WIDTH)
    mask = columns < dim
    added = tl.load(y + row + columns, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        added *= tl.load(gate + columns, mask=mask, other=0.0).to(tl.float32)
    # What is normalised is the sum as it is stored: the next block reads nothing else.
    value = (tl.load(x + row + columns, mask=mask, other=0.0).to(tl.float32) + added).to(total.dtype.element_ty)
    tl.store(total + row + columns, value, mask=mask)
    value = _norm_row(value.to(tl.float32), scale, shift, columns, mask, dim, eps, OFFSET)
    tl.store(out + row + columns, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _rms_norm(x, out, weight, stride, dim, eps, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    mask = columns < dim
    value = tl.load(x + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, 0) / dim + eps)
    value *= tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * dim + columns, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _inverse_rms(q, k, out, stride, rows, dim, eps, WIDTH: tl.constexpr):
    """1 / RMS of every row of q, then of k; both have rows of `stride` elements."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    mask = columns < dim
    if tl.program_id(1) == 0:
        value = tl.load(q + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    else:
        value = tl.load(k + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + tl.program_id(1) * rows + row, tl.rsqrt(tl.sum(value * value, 0) / dim + eps))


@triton.jit
def _rotated(x, inverse, weight, cos, sin, out, pooled, tokens, stride, TOKENS: tl.constexpr, PAIRS: tl.constexpr):
    """Norm, RoPE and mean of one window of one head; `tokens`: rows of x, `out`: TOKENS x d, `pooled`: d."""
    DIM: tl.constexpr = 2 * PAIRS
    columns = tl.arange(0, DIM)
    pairs = tl.arange(0, PAIRS)
    value = tl.load(x + tokens[:, None] * stride + columns[None, :]).to(tl.float32)
    value *= tl.load(inverse + tokens)[:, None] * tl.load(weight + columns).to(tl.float32)[None, :]
    even, odd = tl.split(tl.reshape(value, (TOKENS, PAIRS, 2)))
    c = tl.load(cos + tokens[:, None] * PAIRS + pairs[None, :])
    s = tl.load(sin + tokens[:, None] * PAIRS + pairs[None, :])
    value = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (TOKENS, DIM)).to(out.dtype.element_ty)
    tl.store(out + tl.arange(0, TOKENS)[:, None] * DIM + columns[None, :], value)
    tl.store(pooled + columns, tl.sum(value.to(tl.float32), 0) / TOKENS)


@triton.jit
def _windows(
    q, k, v, inverse, weight_q, weight_k, cos, sin,
    q_out, k_out, v_out, q_pooled, k_pooled,
    stride, rows, heads, count, k_batch, k_head, v_batch, v_head, pooled_batch, pooled_head,
    TOKENS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One window of one head of q, k or v (program 1: which): norm, RoPE, window order and mean in one pass."""
    window, which = tl.program_id(0), tl.program_id(1)
    batch, head = (tl.program_id(2) // heads).to(tl.int64), (tl.program_id(2) % heads).to(tl.int64)
    DIM: tl.constexpr = 2 * PAIRS
    tokens = window.to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    own = batch * (count * TOKENS)  # rows of the batch entries before
    at = own * stride + head * DIM
    place = window.to(tl.int64) * TOKENS * DIM
    if which == 0:
        row = (batch * heads + head) * count
        _rotated(q + at, inverse + own, weight_q + head * DIM, cos, sin, q_out + row * TOKENS * DIM + place,
                 q_pooled + (row + window) * DIM, tokens, stride, TOKENS, PAIRS)  # fmt: skip
    elif which == 1:
        _rotated(k + at, inverse + rows + own, weight_k + head * DIM, cos, sin,
                 k_out + batch * k_batch + head * k_head + place,
                 k_pooled + batch * pooled_batch + head * pooled_head + window * DIM,
                 tokens, stride, TOKENS, PAIRS)  # fmt: skip
    else:
        columns = tl.arange(0, DIM)
        value = tl.load(v + at + tokens[:, None] * stride + columns[None, :])
        target = v_out + batch * v_batch + head * v_head + place
        tl.store(target + tl.arange(0, TOKENS)[:, None] * DIM + columns[None, :], value)


def norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, offset: float) -> Tensor:
    """See `token_ops.norm`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    dim = x.shape[-1]
    with on(x):
        _norm[(x.numel() // dim,)](x, out, scale, shift, dim, eps, OFFSET=offset, WIDTH=triton.next_power_of_2(dim))
    return out


def add_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """See `token_ops.add_norm`."""
    x, y = x.contiguous(), y.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x)
    dim = x.shape[-1]
    with on(x):
        _add_norm[(x.numel() // dim,)](
            x, y, x if gate is None else gate, total, out, scale, shift, dim, eps,
            GATED=gate is not None, OFFSET=offset, WIDTH=triton.next_power_of_2(dim),
        )  # fmt: skip
    return total, out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `token_ops.rms_norm`. x may be columns of a wider tensor."""
    dim, stride = x.shape[-1], row_stride(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with on(x):
        _rms_norm[(x.numel() // dim,)](x, out, weight, stride, dim, eps, WIDTH=triton.next_power_of_2(dim))
    return out


def windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: tuple[Tensor, Tensor],
    rope: tuple[Tensor, Tensor],
    heads: int,
    eps: float,
    room: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Windows:
    """See `token_ops.windows`. q, k and v may be columns of one wider tensor; heads of 16, 32, 64, 128 channels."""
    batch, tokens, dim = q.shape
    head_dim, count = dim // heads, tokens // WINDOW_TOKENS
    if len({row_stride(x) for x in (q, k, v)}) > 1:
        q, k, v = (x.contiguous() for x in (q, k, v))
    shape = (batch, heads, count, WINDOW_TOKENS, head_dim)
    q_out, q_pooled = q.new_empty(shape), q.new_empty(shape[:3] + shape[4:], dtype=torch.float32)
    if room is None:
        room = q.new_empty(shape), q.new_empty(shape), torch.empty_like(q_pooled)
    k_out, v_out, k_pooled = room
    inverse = torch.empty(2 * batch * tokens, dtype=torch.float32, device=q.device)
    stride = row_stride(q)
    with on(q):
        _inverse_rms[(batch * tokens, 2)](
            q, k, inverse, stride, batch * tokens, dim, eps, WIDTH=triton.next_power_of_2(dim)
        )
        _windows[(count, 3, batch * heads)](
            q, k, v, inverse, *weights, *rope, q_out, k_out, v_out, q_pooled, k_pooled,
            stride, batch * tokens, heads, count, *k_out.stride()[:2], *v_out.stride()[:2], *k_pooled.stride()[:2],
            TOKENS=WINDOW_TOKENS, PAIRS=head_dim // 2, num_warps=4,
        )  # fmt: skip
    return Windows(q_out, k_out, v_out, q_pooled)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `token_ops.linear_gelu`. On GPUs GELU is the product's epilogue (cuBLASLt's, which is the tanh form)."""
    if not x.is_cuda or x.dtype == torch.float32:
        return token_ops.linear_gelu(x, weight, bias)
    out = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return out.unflatten(0, x.shape[:-1])


def row_stride(x: Tensor) -> int:
    """Elements from one token to the next, of a tensor B S C that may be columns of a wider one."""
    batch, tokens, _ = x.shape
    stride = x.stride(1)
    if x.stride(2) != 1 or (batch > 1 and x.stride(0) != tokens * stride):
        raise ValueError(f"tokens with strides {x.stride()} do not lie one after another")
    return stride
