"""The fused token operations against their reference in plain PyTorch."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from flashvsr_core.kernels import token_ops
from flashvsr_core.kernels.block_mask import pool
from tests.core import triton_here
from tests.core.formula import draw, relative_error

DEVICE = triton_here.DEVICE
EPS = 1e-6


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    return triton_here.module("token_ops_triton")


def rows(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return draw(name, shape).to(DEVICE, dtype)


@pytest.mark.parametrize("dim", [16, 48, 130, 256])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm(fused: ModuleType, dim: int, offset: float) -> None:
    x, scale, shift = 3 + rows("norm.x", 2, 5, dim), rows("norm.scale", dim), rows("norm.shift", dim)
    expected = token_ops.norm(x, scale, shift, EPS, offset)
    assert relative_error(fused.norm(x, scale, shift, EPS, offset), expected) < 1e-6


@pytest.mark.parametrize("dim", [16, 130, 256])
@pytest.mark.parametrize("gated", [True, False])
def test_add_norm(fused: ModuleType, dim: int, gated: bool) -> None:
    x, y, gate = rows("add.x", 1, 7, dim), rows("add.y", 1, 7, dim), rows("add.gate", dim) if gated else None
    scale, shift = rows("add.scale", dim), rows("add.shift", dim)
    expected = token_ops.add_norm(x, y, gate, scale, shift, EPS, 1.0)
    for ours, theirs in zip(fused.add_norm(x, y, gate, scale, shift, EPS, 1.0), expected):
        assert relative_error(ours, theirs) < 1e-6


def test_add_norm_in_half_precision_normalises_the_stored_sum(fused: ModuleType) -> None:
    x, y = (rows(f"half.{n}", 1, 9, 64, dtype=torch.float16) for n in "xy")
    scale, shift = (rows(f"half.{n}", 64, dtype=torch.float16) for n in ("scale", "shift"))
    total, out = fused.add_norm(x, y, None, scale, shift, EPS, 1.0)
    assert torch.equal(total, x + y)
    exact = token_ops.norm((x + y).double(), scale.double(), shift.double(), EPS, 1.0)
    assert relative_error(out, exact) < 5e-4


@pytest.mark.parametrize("dim", [16, 130, 256])
def test_rms_norm_of_columns_of_a_wider_tensor(fused: ModuleType, dim: int) -> None:
    wide, weight = rows("rms.x", 2, 6, 3 * dim), rows("rms.weight", dim)
    x = wide.chunk(3, dim=-1)[1]
    assert relative_error(fused.rms_norm(x, weight, EPS), token_ops.rms_norm(x, weight, EPS)) < 1e-6


def test_tokens_that_do_not_follow_each_other_are_refused(fused: ModuleType) -> None:
    with pytest.raises(ValueError, match="strides"):
        fused.rms_norm(rows("odd", 1, 4, 32)[..., ::2], rows("odd.weight", 16), EPS)


@pytest.mark.parametrize(
    ("batch", "heads", "windows", "dim"), [(1, 1, 1, 16), (1, 3, 2, 32), (2, 2, 3, 64), (1, 12, 1, 128)]
)
@pytest.mark.parametrize("joined", [True, False])
def test_windows(fused: ModuleType, batch: int, heads: int, windows: int, dim: int, joined: bool) -> None:
    width, tokens = heads * dim, windows * 128
    wide = rows("windows", batch, tokens, 3 * width)
    q, k, v = wide.chunk(3, dim=-1) if joined else (x.contiguous() for x in wide.chunk(3, dim=-1))
    weights = rows("windows.q", width), rows("windows.k", width)
    angles = rows("windows.angles", tokens, dim // 2)
    args = (q, k, v, weights, (angles.cos(), angles.sin()), heads, EPS)
    expected = token_ops.windows(*args)
    for ours, theirs in zip(fused.windows(*args), expected):
        assert relative_error(ours, theirs) < 1e-6
    rooms = []
    for function in (token_ops.windows, fused.windows):
        slots = 3  # the middle one is written
        ring = [torch.full((batch, heads, slots * windows, *rest), torch.nan, device=DEVICE)
                for rest in ((128, dim), (128, dim), (dim,))]  # fmt: skip
        room = tuple(x[:, :, windows : 2 * windows] for x in ring)
        found = function(*args, room)
        assert found.k.data_ptr() == room[0].data_ptr()
        assert all(x[:, :, :windows].isnan().all() and x[:, :, 2 * windows :].isnan().all() for x in ring)
        assert relative_error(room[2], pool(expected.k)) < 1e-6
        rooms.append(room)
    for ours, theirs in zip(rooms[1], rooms[0]):
        assert relative_error(ours, theirs) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_gelu_is_the_tanh_form(fused: ModuleType, dtype: torch.dtype) -> None:
    x, weight, bias = rows("gelu.x", 2, 256, 128), rows("gelu.w", 192, 128) / 8, rows("gelu.b", 192)
    x, weight, bias = (t.to("cuda", dtype) for t in (x, weight, bias))
    out = fused.linear_gelu(x, weight, bias)
    exact = token_ops.linear_gelu(x.double(), weight.double(), bias.double())
    erf = torch.nn.functional.gelu(torch.nn.functional.linear(x.double(), weight.double(), bias.double()))
    plain = token_ops.linear_gelu(x, weight, bias)
    assert relative_error(out, exact) < 1.1 * relative_error(plain, exact)
    assert relative_error(out, exact) < relative_error(out, erf)
