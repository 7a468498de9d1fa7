"""The LQ projection in fp8: patches against the reference, the products against the convolutions."""

import pytest
import torch

from flashvsr_core.kernels.fp8_linear import multiply_torch
from flashvsr_core.kernels.fp8_patches import scale_of, unfold_torch
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.registry import LqKind, LqSpec
from tests.core import triton_here
from tests.core.formula import draw, fill, relative_error


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("batch", "frames", "height", "width", "channels"), [(1, 4, 1, 1, 16), (2, 7, 3, 2, 40), (1, 6, 2, 5, 64)]
)
def test_patches(batch: int, frames: int, height: int, width: int, channels: int, stride: int) -> None:
    x = draw("patches", (batch, frames, height, width, channels)).to(triton_here.DEVICE)
    x[0, 0] = 0
    scale = scale_of(x)
    expected = unfold_torch(x, scale, 4, stride).float() * scale
    count = (frames - 4) // stride + 1
    assert expected.shape == (batch * count * height * width, 4 * 9 * channels)
    padded = torch.nn.functional.pad(x.movedim(-1, 1), (1, 1, 1, 1, 0, 0), mode="replicate").movedim(1, -1)
    windows = padded.unfold(1, 4, stride).unfold(2, 3, 1).unfold(3, 3, 1)  # b n h w c 4 3 3
    exact = windows.movedim(4, -1).reshape(expected.shape)
    assert relative_error(expected, exact) < 0.04
    found = triton_here.module("fp8_patches_triton").unfold(x, scale, 4, stride).float() * scale
    # A GPU rounds to the nearest, as PyTorch does; Triton's interpreter cuts off.
    assert relative_error(found, expected) < (5e-3 if triton_here.DEVICE.type == "cuda" else 0.1)


def test_zeros_stay_zeros() -> None:
    x = torch.zeros(1, 4, 2, 2, 16)
    assert not unfold_torch(x, scale_of(x), 4, 2).float().any()


@pytest.mark.parametrize("kind", ["causal", "buffer"])
@torch.inference_mode()
def test_the_projection_is_near_its_convolutions(kind: LqKind) -> None:
    exact, rounded = (fill(LqProj(LqSpec(kind, (32, 24)), 16), "lq_proj.") for _ in range(2))
    assert isinstance(exact, LqProj)
    assert isinstance(rounded, LqProj)
    rounded.quantise(unfold_torch, multiply_torch, least=1)
    caches, others = None, None
    for frames in (25, 8, 8):
        pixels = draw(f"lq.{frames}", (1, 3, frames, 48, 32)).clamp(-1, 1)
        expected, caches = exact(pixels, caches)
        found, others = rounded(pixels, others)
        assert found.shape == expected.shape
        assert 1e-4 < relative_error(found, expected) < 0.08  # measured 0.06, on noise


@torch.inference_mode()
def test_small_layers_and_pictures_stay_as_they_are() -> None:
    exact, asked = (fill(LqProj(LqSpec("causal", (32, 24)), 16), "lq_proj.") for _ in range(2))
    assert isinstance(exact, LqProj)
    assert isinstance(asked, LqProj)
    pixels = draw("lq", (1, 3, 25, 48, 32)).clamp(-1, 1)
    for least in (33, 7):  # channels, tokens of a frame
        asked.quantise(unfold_torch, multiply_torch, least)
        assert torch.equal(asked(pixels, None)[0], exact(pixels, None)[0])


@pytest.mark.gpu
@torch.inference_mode()
def test_the_product_of_the_gpu() -> None:
    """At the published size, and of the smallest picture that is computed so."""
    from flashvsr_core.kernels.fp8_linear import multiply
    from flashvsr_core.kernels.fp8_patches_triton import unfold

    torch.manual_seed(0)
    ours = LqProj(LqSpec("causal", (2048, 3072)), 32).to("cuda", torch.bfloat16)
    pixels = draw("lq", (1, 3, 25, 512, 512)).clamp(-1, 1).cuda()
    ours.quantise(unfold_torch, multiply_torch)
    expected = ours(pixels, None)[0]
    ours.quantise(unfold, multiply)
    found = ours(pixels, None)[0]
    assert len(ours.fp8) == 2
    # The second convolution rounds what the first gave; matrix units sum 73728 products of fp8 in few bits.
    assert relative_error(found, expected) < 0.05  # measured 0.028 on an H100
