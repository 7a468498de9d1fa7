"""Attention on int8 queries and keys: the kernel against its reference, the reference against exact attention."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from flashvsr_core.errors import UserError
from flashvsr_core.kernels.block_attention import attend_torch
from flashvsr_core.kernels.int8_attention import (
    attend_int8_fp8_torch,
    attend_int8_torch,
    common,
    quantise_torch,
    values_torch,
)
from tests.core import triton_here
from tests.core.formula import relative_error
from tests.core.test_block_attention import inputs, mask

DEVICE = triton_here.DEVICE


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    return triton_here.module("int8_attention_triton")


@pytest.mark.parametrize("by_window", [True, False])
@pytest.mark.parametrize("smooth", [True, False])
def test_quantises_as_the_reference(kernel: ModuleType, by_window: bool, smooth: bool) -> None:
    k = inputs("int8", 2, 2, 1, 5, 64)[1][:, :, :3]  # the start of a longer buffer
    k[0, 1, 1] = 0
    less = common(k) if smooth else None
    ours, expected = kernel.quantise(k, less, by_window), quantise_torch(k, less, by_window)
    assert relative_error(ours.scales, expected.scales) < 1e-6
    # Values on the edge between two levels may go either way.
    assert int((ours.values.int() - expected.values.int()).abs().max()) <= 1
    assert (ours.values != expected.values).float().mean() < 1e-3
    assert (expected.restored() - (k if less is None else k - less[:, :, None, None])).abs().max() <= (
        expected.scales.max() / 2 * 1.001
    )


@pytest.mark.parametrize(("batch", "heads", "wq", "wk", "dim"), [(1, 1, 1, 1, 64), (1, 2, 3, 5, 128), (2, 3, 2, 7, 32)])
@pytest.mark.parametrize("share", [0.4, 0.999])
def test_equals_the_reference(
    kernel: ModuleType, batch: int, heads: int, wq: int, wk: int, dim: int, share: float
) -> None:
    shape = (batch, heads, wq, wk)
    q, k, v = inputs("attend", *shape, dim)
    blocks = mask("attend", *shape, share)
    out = kernel.attend_int8(q, k, v, blocks)
    if blocks.any():
        assert relative_error(out, attend_int8_torch(q, k, v, blocks)) < 1e-3
        assert relative_error(out, attend_torch(q, k, v, blocks)) < 0.02  # SageAttention's figure: 1.4 %
    assert not out[~blocks.any(-1)].any()


@pytest.mark.parametrize(("batch", "heads", "wq", "wk", "dim"), [(1, 1, 1, 1, 64), (1, 2, 3, 5, 128), (2, 3, 2, 7, 32)])
@pytest.mark.parametrize("share", [0.4, 0.999])
def test_values_in_fp8(kernel: ModuleType, batch: int, heads: int, wq: int, wk: int, dim: int, share: float) -> None:
    shape = (batch, heads, wq, wk)
    q, k, v = inputs("attend", *shape, dim)
    v = v * torch.logspace(-3, 3, heads, device=DEVICE)[:, None, None, None]
    v[0, 0, 1:2] = 0
    found, expected = kernel.quantise_values(v), values_torch(v)
    assert relative_error(found.scales, expected.scales) < 1e-6
    # A GPU rounds to the nearest, as PyTorch does; Triton's interpreter cuts off.
    on_gpu = DEVICE.type == "cuda"
    assert relative_error(found.restored(), expected.restored()) < (5e-3 if on_gpu else 0.1)
    assert relative_error(expected.restored(), v) < 0.04
    blocks = mask("attend", *shape, share)
    out = kernel.attend_int8_fp8(q, k, v, blocks)
    reference = attend_int8_fp8_torch(q, k, v, blocks)
    exact = attend_torch(q, k, v, blocks)
    for h in range(heads):  # each has a scale of its own
        if exact[:, h].any():
            assert relative_error(out[:, h], reference[:, h]) < (0.04 if on_gpu else 0.12)
            assert relative_error(out[:, h], exact[:, h]) < (0.05 if on_gpu else 0.16)
    assert not out[~blocks.any(-1)].any()


def test_what_all_keys_share_costs_nothing(kernel: ModuleType) -> None:
    q, k, v = inputs("bias", 1, 1, 2, 4, 64)
    blocks = torch.ones(1, 1, 2, 4, dtype=torch.bool, device=DEVICE)
    exact = attend_torch(q.double(), (k + 30).double(), v.double(), blocks)
    assert relative_error(kernel.attend_int8(q, k + 30, v, blocks), exact) < 0.02
    rough = attend_torch(q, quantise_torch(k + 30, None, by_window=True).restored(), v, blocks)
    assert relative_error(rough, exact) > 0.04


def test_half_precision_and_refusals(kernel: ModuleType) -> None:
    q, k, v = (x.half() for x in inputs("half", 1, 2, 3, 6, 128))
    blocks = mask("half", 1, 2, 3, 6, 0.5)
    out = kernel.attend_int8(q, k, v, blocks)
    assert out.dtype == torch.float16
    assert relative_error(out, attend_int8_torch(q, k, v, blocks)) < 2e-3
    assert kernel.attend_int8_fp8(q, k, v, blocks).dtype == torch.float16
    with pytest.raises(UserError, match="'int8' has no kernel for heads of 16"):
        kernel.attend_int8(q[..., :16], k[..., :16], v[..., :16], blocks)


def test_sage_leaves_the_keys_alone() -> None:
    pytest.importorskip("sageattention")
    attend = triton_here.module("sage_attention").attend_sage
    q, k, v = inputs("sage", 1, 2, 2, 4, 64)
    blocks = mask("sage", 1, 2, 2, 4, 0.6)
    before: Tensor = (k + 5).clone()
    keys = before.clone()
    out = attend(q, keys, v, blocks)
    assert torch.equal(keys, before)
    assert relative_error(out, attend_torch(q, keys, v, blocks)) < 0.03
