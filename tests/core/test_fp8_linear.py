"""fp8 layers: the kernel that rounds against its reference, the layer and the model against half and full precision."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from flashvsr_core.bench.fidelity import fidelity
from flashvsr_core.bench.probe import Probe
from flashvsr_core.config import FAST_DB, UpscaleParams
from flashvsr_core.kernels import token_ops
from flashvsr_core.kernels.fp8_linear import (
    ROUNDING,
    Fp8Linear,
    linear_torch,
    multiply,
    multiply_torch,
    quantise_rows_torch,
)
from flashvsr_core.kernels.int8_attention import attend_int8_torch
from flashvsr_core.upscaler import Upscaler
from tests.core import triton_here
from tests.core.formula import draw, formula_weights, relative_error

DEVICE = triton_here.DEVICE


@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("dim", [16, 130, 1000])
def test_rows_are_rounded_as_in_the_reference(gelu: bool, dim: int) -> None:
    x = draw("fp8", (7, dim)).to(DEVICE) * torch.logspace(-3, 3, 7, device=DEVICE)[:, None]
    x[3] = 0
    values, scales = triton_here.module("fp8_linear_triton").quantise_rows(x, gelu)
    expected, by = quantise_rows_torch(x, gelu)
    assert relative_error(scales, by) < 1e-5
    restored, exact = (v.float() * s[:, None] for v, s in ((values, scales), (expected, by)))
    wide = F.gelu(x, approximate="tanh") if gelu else x
    assert torch.isfinite(restored).all()
    # A GPU rounds to the nearest, as PyTorch does; Triton's interpreter cuts off.
    assert relative_error(restored, exact) < (5e-3 if DEVICE.type == "cuda" else 0.08)
    assert relative_error(restored, wide) < (0.04 if DEVICE.type == "cuda" else 0.1)
    assert relative_error(exact, wide) < 0.04  # 3 bits of mantissa: at most 1/16 of each number


@pytest.mark.parametrize("dim", [16, 130, 256])
@pytest.mark.parametrize("gated", [None, True, False])
def test_norms_round_as_the_reference(gated: bool | None, dim: int) -> None:
    x, y, gate = (draw(f"round.{n}", (2, 5, dim)).to(DEVICE) for n in "xyg")
    scale, shift = (draw(f"round.{n}", (dim,)).to(DEVICE) for n in ("scale", "shift"))
    shift[:] += 3
    x[0, 2], y[0, 2] = 0, 0
    ours, norms = triton_here.module("fp8_linear_triton").ROUNDING, (scale, shift, 1e-6, 1.0)
    if gated is None:
        found, expected, exact = (f(x, *norms) for f in (ours.norm, ROUNDING.norm, token_ops.norm))
    else:
        args = (x, y, gate[0, 0] if gated else None, *norms)
        (total, found), (sums, expected), (_, exact) = (
            f(*args) for f in (ours.add_norm, ROUNDING.add_norm, token_ops.add_norm)
        )
        assert relative_error(total, sums) < 1e-6
    assert relative_error(found.scales, expected.scales) < 1e-5
    restored, reference = (r.values.float() * r.scales[..., None] for r in (found, expected))
    assert relative_error(restored, reference) < (5e-3 if DEVICE.type == "cuda" else 0.1)
    assert relative_error(reference, exact) < 0.04
    layer = Fp8Linear.of(draw("round.w", (48, dim)).to(DEVICE), draw("round.b", (48,)).to(DEVICE))
    assert relative_error(ROUNDING.linear(expected, layer), linear_torch(exact, layer)) < 0.01


def test_a_layer_is_near_its_half_precision() -> None:
    x, weight, bias = draw("x", (2, 40, 256)), draw("w", (96, 256)) / 16, draw("b", (96,))
    layer = Fp8Linear.of(weight, bias)
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert relative_error(linear_torch(x, layer), F.linear(x, weight, bias)) < 0.04
    assert relative_error(linear_torch(x, layer, gelu=True), F.linear(F.gelu(x), weight, bias)) < 0.04


def test_the_scaled_product_of_pytorch_is_the_reference() -> None:
    """As it is called for GPUs; PyTorch has it for CPUs too."""
    x, weight, bias = draw("x", (40, 256)), draw("w", (96, 256)) / 16, draw("b", (96,)).bfloat16()
    layer = Fp8Linear.of(weight, bias)
    rows = quantise_rows_torch(x, gelu=False)
    found = multiply(*rows, layer)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, multiply_torch(*rows, layer)) < 5e-3


@pytest.mark.gpu
def test_the_scaled_product_of_the_gpu() -> None:
    from flashvsr_core.kernels.fp8_linear_triton import linear

    shapes = {"x": (2, 256, 512), "w": (768, 512), "b": (768,)}
    x, weight, bias = (draw(name, shape).to("cuda", torch.bfloat16) for name, shape in shapes.items())
    layer = Fp8Linear.of(weight, bias)
    expected = multiply_torch(*quantise_rows_torch(x.flatten(0, 1), gelu=True), layer)
    assert relative_error(linear(x, layer, gelu=True).flatten(0, 1), expected) < 5e-3


def test_fast_stays_near_exact() -> None:
    """The gate of profile fast, on formula weights and in plain PyTorch: int8 attention and fp8 layers."""
    weights = formula_weights()
    params = UpscaleParams(scale=4, color_fix="none", preroll=0, local_range=3, scenes="off")
    exact, fast = (Upscaler.load(weights, params) for _ in range(2))
    fast.net.dit.quantise(linear_torch)
    joined = Upscaler.load(weights, params)
    joined.net.dit.quantise(linear_torch, ROUNDING)
    rounded = Probe(fast, None, lambda sparsity: replace(sparsity, attend=attend_int8_torch))
    found = fidelity(rounded, exact, 128, 256)
    assert FAST_DB < found.psnr_db < 90  # and something was rounded; measured 76
    # Rounded by the norms, cross-attention's queries too.
    assert all(block.cross_attn.fp8 for block in joined.net.dit.blocks)
    assert FAST_DB < fidelity(joined, exact, 128, 256).psnr_db < 90
