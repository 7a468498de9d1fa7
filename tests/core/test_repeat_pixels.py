"""Growth in space and time: the reference against PyTorch's own layers, Triton against the reference."""

import pytest
import torch
import torch.nn.functional as F

from flashvsr_core.errors import UserError
from flashvsr_core.kernels.interleave import interleave
from flashvsr_core.kernels.repeat_pixels import repeat_pixels
from tests.core import triton_here
from tests.core.formula import draw


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("steps", "channels", "height", "width"), [(1, 16, 1, 1), (2, 32, 3, 17), (3, 8, 5, 16)])
def test_repeats_pixels(stride: int, steps: int, channels: int, height: int, width: int) -> None:
    x = draw("repeat", (steps, stride * channels, height, width)).to(triton_here.DEVICE)
    frames = x.unflatten(1, (stride, channels)).flatten(0, 1)
    expected = F.interpolate(frames, scale_factor=2)
    assert torch.equal(repeat_pixels(x, stride), expected)
    assert torch.equal(triton_here.module("pixels_triton").repeat_pixels(x, stride), expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("steps", "channels", "height", "width"), [(1, 16, 1, 1), (2, 32, 3, 17), (3, 8, 5, 16)])
def test_interleaves_phases(stride: int, steps: int, channels: int, height: int, width: int) -> None:
    x = draw("phases", (steps, stride * 4 * channels, height + 1, width + 1)).to(triton_here.DEVICE)
    found = interleave(x, stride)
    assert found.shape == (steps * stride, channels, 2 * height, 2 * width)
    for frame, row, column in [(0, 0, 0), (steps * stride - 1, 2 * height - 1, 2 * width - 1), (stride - 1, 1, 0)]:
        p, q = row % 2, column % 2
        phase = ((frame % stride * 2 + p) * 2 + q) * channels
        pixel = x[frame // stride, phase : phase + channels, row // 2 + p, column // 2 + q]
        assert torch.equal(found[frame, :, row, column], pixel)
    assert torch.equal(triton_here.module("pixels_triton").interleave(x, stride), found)


def test_channels_that_are_no_power_of_two_are_refused() -> None:
    kernels = triton_here.module("pixels_triton")
    with pytest.raises(UserError, match="interleaves pixels of 24 channels"):
        kernels.interleave(torch.zeros(1, 96, 2, 2, device=triton_here.DEVICE), 1)
    with pytest.raises(UserError, match="repeats pixels of 24 channels"):
        kernels.repeat_pixels(torch.zeros(1, 24, 2, 2, device=triton_here.DEVICE), 1)
