"""Growth in space and time: the reference against PyTorch's own layers, Triton against the reference."""

import pytest
import torch
import torch.nn.functional as F

from flashvsr_core.errors import UserError
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


def test_channels_that_are_no_power_of_two_are_refused() -> None:
    with pytest.raises(UserError, match="24 channels"):
        triton_here.module("pixels_triton").repeat_pixels(torch.zeros(1, 24, 2, 2, device=triton_here.DEVICE), 1)
