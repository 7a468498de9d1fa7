"""The kernel for Hopper against plain PyTorch: on such a GPU only, for Triton's interpreter does not know Gluon."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import embedded_weights
from tests.core import triton_here
from tests.core.formula import relative_error
from tests.core.test_block_attention import inputs, mask, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    return triton_here.module("hopper_attention")


def rounded(name: str, batch: int, heads: int, wq: int, wk: int, dtype: torch.dtype) -> list[Tensor]:
    return [x.to(dtype) for x in inputs(name, batch, heads, wq, wk, 128)]


@pytest.mark.parametrize(("batch", "heads", "wq", "wk"), [(1, 1, 1, 1), (1, 2, 3, 5), (2, 3, 2, 7), (1, 12, 9, 40)])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.999])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
def test_equals_plain_pytorch(
    kernel: ModuleType, batch: int, heads: int, wq: int, wk: int, share: float, dtype: torch.dtype, limit: float
) -> None:
    shape = (batch, heads, wq, wk)
    q, k, v = rounded("attend", *shape, dtype)
    blocks = mask("attend", *shape, share)
    out = kernel.attend_hopper(q, k, v, blocks)
    assert out.dtype == dtype
    if blocks.any():
        assert relative_error(out, reference(q, k, v, blocks)) < limit
    assert not out[~blocks.any(-1)].any()


def test_all_blocks_many_times(kernel: ModuleType) -> None:
    """Every multiprocessor has many programs, and each time the result is the same to the last bit."""
    q, k, v = rounded("all", 1, 12, 66, 24, torch.bfloat16)
    blocks = torch.ones(1, 12, 66, 24, dtype=torch.bool, device=q.device)
    first = kernel.attend_hopper(q, k, v, blocks)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.flatten(2, 3).float() for x in (q, k, v)))
    assert relative_error(first.flatten(2, 3), dense) < 6e-3
    for _ in range(20):
        assert torch.equal(kernel.attend_hopper(q, k, v, blocks), first)


def test_large_scores_do_not_overflow(kernel: ModuleType) -> None:
    q, k, v = rounded("large", 1, 1, 2, 3, torch.bfloat16)
    blocks = mask("large", 1, 1, 2, 3, 0.999)
    assert (
        relative_error(kernel.attend_hopper(100 * q, 100 * k, v, blocks), reference(100 * q, 100 * k, v, blocks)) < 6e-3
    )


def test_keys_may_be_the_start_of_a_longer_buffer(kernel: ModuleType) -> None:
    q, k, v = rounded("ring", 1, 3, 2, 6, torch.bfloat16)
    blocks = mask("ring", 1, 3, 2, 4, 0.6)
    visible = k[:, :, :4], v[:, :, :4]
    assert not visible[0].is_contiguous()
    assert relative_error(kernel.attend_hopper(q, *visible, blocks), reference(q, *visible, blocks)) < 6e-3


def test_a_whole_model_computes_with_it() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (49, 64, 64, 3), dtype=np.uint8)
    params = UpscaleParams(model="nano", scenes="off", preroll=0)
    ours, other = (
        Upscaler.load(embedded_weights(), replace(params, attention=name), "cuda")  # type: ignore[arg-type]
        for name in ("auto", "triton")
    )
    assert ours.params.attention == "hopper"
    found, again, expected = (
        np.concatenate([np.asarray(chunk) for chunk in upscaler.stream(iter([clip]))]).astype(np.float64)
        for upscaler in (ours, ours, other)
    )
    assert np.array_equal(found, again)
    assert ((found - expected) ** 2).mean() < 255**2 * 1e-5  # 50 dB


def test_unsupported_inputs_are_refused(kernel: ModuleType) -> None:
    q, k, v = inputs("odd", 1, 1, 1, 1, 128)
    blocks = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=q.device)
    with pytest.raises(UserError, match=r"'hopper' has no kernel for torch\.float32"):
        kernel.attend_hopper(q, k, v, blocks)
    with pytest.raises(UserError, match="heads of 64"):
        kernel.attend_hopper(*(x[..., :64].half() for x in (q, k, v)), blocks)
