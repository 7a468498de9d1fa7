"""Enlargement of the input in Triton against PyTorch's."""

import pytest
import torch

from flashvsr_core.geometry import Geometry
from flashvsr_core.pixels import enlarge, enlarge_padded
from tests.core import triton_here

FRAMES = 1
SIZES = [(32, 9, 4), (45, 5, 3), (5, 3, 4), (1, 1, 2), (150, 2, 4)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize(("width", "height", "scale"), SIZES)
def test_enlarges_and_pads_as_pytorch(width: int, height: int, scale: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    frames = torch.randint(
        0, torch.iinfo(dtype).max + 1, (FRAMES, height, width, 3), generator=generator, dtype=torch.int32
    )
    frames = frames.to(dtype).to(triton_here.DEVICE)
    geometry = Geometry(width, height, scale)
    found = triton_here.module("enlarge_triton").enlarge(frames, geometry)
    expected = enlarge_padded(frames, geometry)
    assert found.shape == expected.shape == (FRAMES, 3, geometry.padded_height, geometry.padded_width)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_extremes_are_not_exceeded() -> None:
    frames = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    frames[:, :, 4:] = 255  # a cubic kernel overshoots at an edge
    found = triton_here.module("enlarge_triton").enlarge(frames.to(triton_here.DEVICE), Geometry(8, 8, 4))
    assert (found.min(), found.max()) == (-1, 1)
    torch.testing.assert_close(found[..., :32, :32].cpu(), enlarge(frames, Geometry(8, 8, 4)), rtol=0, atol=2e-6)
