"""The Triton kernel against plain PyTorch: on a GPU if there is one, else in Triton's interpreter."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from flashvsr_core.errors import UserError
from flashvsr_core.kernels.block_attention import attend_torch, attention_backend
from tests.core import triton_here
from tests.core.formula import draw, relative_error

DEVICE = triton_here.DEVICE
KERNEL = "flashvsr_core.kernels.block_attention_triton"


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    return triton_here.module("block_attention_triton")


def inputs(name: str, batch: int, heads: int, wq: int, wk: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    windows = {"q": wq, "k": wk, "v": wk}
    q, k, v = (draw(f"{name}.{x}", (batch, heads, w, 128, dim)).to(DEVICE) for x, w in windows.items())
    return q, k, v


def mask(name: str, batch: int, heads: int, wq: int, wk: int, share: float) -> Tensor:
    """About `share` of the blocks; the first row of the last head is empty, the last row has one block only."""
    generator = torch.Generator().manual_seed(len(name))
    blocks = torch.rand((batch, heads, wq, wk), generator=generator) < share
    blocks[:, -1, 0] = False
    blocks[:, 0, -1] = False
    blocks[:, 0, -1, wk // 2] = True
    return blocks.to(DEVICE)


def reference(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
    return attend_torch(*(x.double().cpu() for x in (q, k, v)), blocks.cpu())


@pytest.mark.parametrize(
    ("batch", "heads", "wq", "wk", "dim"), [(1, 1, 1, 1, 64), (1, 2, 3, 5, 128), (2, 3, 2, 7, 32), (1, 12, 2, 4, 16)]
)
@pytest.mark.parametrize("share", [0.4, 0.999])
def test_equals_plain_pytorch(
    kernel: ModuleType, batch: int, heads: int, wq: int, wk: int, dim: int, share: float
) -> None:
    shape = (batch, heads, wq, wk)
    q, k, v = inputs("attend", *shape, dim)
    blocks = mask("attend", *shape, share)
    expected = reference(q, k, v, blocks)
    out = kernel.attend_triton(q, k, v, blocks)
    if not blocks.any():
        assert not out.any()
    else:
        assert relative_error(out, expected) < 1e-6


# Triton's interpreter multiplies the bits of bf16 as integers, so that type needs a GPU.
@pytest.mark.parametrize(
    ("dtype", "limit"), [pytest.param(torch.bfloat16, 6e-3, marks=pytest.mark.gpu), (torch.float16, 1e-3)]
)
def test_half_precisions(kernel: ModuleType, dtype: torch.dtype, limit: float) -> None:
    q, k, v = (x.to(dtype) for x in inputs("half", 1, 2, 3, 6, 128))
    blocks = mask("half", 1, 2, 3, 6, 0.5)
    out = kernel.attend_triton(q, k, v, blocks)
    assert out.dtype == dtype
    assert relative_error(out, reference(q, k, v, blocks)) < limit


def test_rows_without_blocks_are_zero(kernel: ModuleType) -> None:
    q, k, v = inputs("empty", 1, 2, 3, 4, 32)
    assert not kernel.attend_triton(q, k, v, torch.zeros(1, 2, 3, 4, dtype=torch.bool, device=DEVICE)).any()
    blocks = mask("empty", 1, 2, 3, 4, 0.5)
    out = kernel.attend_triton(q, k, v, blocks)
    assert not out[:, -1, 0].any()


def test_large_scores_do_not_overflow(kernel: ModuleType) -> None:
    q, k, v = inputs("large", 1, 1, 2, 3, 64)
    blocks = mask("large", 1, 1, 2, 3, 0.999)
    out = kernel.attend_triton(100 * q, 100 * k, v, blocks)
    assert relative_error(out, reference(100 * q, 100 * k, v, blocks)) < 1e-5


def test_keys_may_be_the_start_of_a_longer_buffer(kernel: ModuleType) -> None:
    """What the ring of keys and values hands out while it fills."""
    q, k, v = inputs("ring", 1, 3, 2, 6, 32)
    blocks = mask("ring", 1, 3, 2, 4, 0.6)
    visible = k[:, :, :4], v[:, :, :4]
    assert not visible[0].is_contiguous()
    assert relative_error(kernel.attend_triton(q, *visible, blocks), reference(q, *visible, blocks)) < 1e-6


def test_lists_hold_the_selected_blocks_in_order(kernel: ModuleType) -> None:
    blocks = mask("lists", 2, 3, 4, 13, 0.4)
    found = kernel.list_blocks(blocks)
    assert torch.equal(found.mask(), blocks)
    for row, count, chosen in zip(blocks.flatten(0, 2), found.counts.flatten(), found.indices.flatten(0, 2)):
        assert chosen[:count].tolist() == row.nonzero().flatten().tolist()


def test_unsupported_inputs_are_refused(kernel: ModuleType) -> None:
    q, k, v = inputs("odd", 1, 1, 1, 1, 64)
    blocks = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=DEVICE)
    with pytest.raises(UserError, match="float64"):
        kernel.attend_triton(q.double(), k.double(), v.double(), blocks)
    with pytest.raises(UserError, match="heads of 24"):
        kernel.attend_triton(q[..., :24], k[..., :24], v[..., :24], blocks)


def test_missing_triton_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, KERNEL, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UserError, match=r"flashvsr\[gpu\]"):
        attention_backend("triton")


def test_unknown_backend() -> None:
    with pytest.raises(UserError, match="'flash' is not known"):
        attention_backend("flash")
