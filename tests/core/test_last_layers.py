"""The decoder's last layers in profile fast: the reference against PyTorch's convolutions, kernels against that."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashvsr_core.errors import UserError
from flashvsr_core.kernels import last_layers
from flashvsr_core.kernels.fp8_linear import quantise_rows_torch
from flashvsr_core.kernels.interleave import interleave
from flashvsr_core.kernels.last_layers import CHANNELS, PRODUCTS, LastLayers, projection
from tests.core import triton_here
from tests.core.formula import draw, relative_error

SIZES = [(1, 1, 1), (2, 3, 17), (2, 5, 40)]  # frames, lines, pixels


def picture(channels: int, frames: int, height: int, width: int) -> Tensor:
    x = draw("last", (frames, channels, height, width)).to(triton_here.DEVICE)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [16, 128])
@pytest.mark.parametrize(("frames", "height", "width"), SIZES)
def test_products_of_taps_make_a_convolution(channels: int, frames: int, height: int, width: int) -> None:
    x = picture(channels, frames, height, width)
    weight, bias = (draw(n, s).to(x.device) for n, s in (("w", (3, channels, 3, 3)), ("b", (3,))))
    products = last_layers.project(x, projection(weight))
    assert products.shape == (frames, height, width, PRODUCTS)
    out = torch.empty(3, frames, height, width, device=x.device)
    last_layers.gather(products, torch.ones((), device=x.device), bias, out)
    expected = 2 * F.conv2d(x, weight, bias, padding=1) - 1
    assert relative_error(out.transpose(0, 1), expected) < 1e-5
    of_triton = triton_here.module("last_layers_triton").project(x, projection(weight))
    assert relative_error(of_triton, products) < 1e-5


@pytest.mark.parametrize("border", [0, 1])
@pytest.mark.parametrize(("frames", "height", "width"), [*SIZES, (1, 2, 300)])
def test_neighbours_are_gathered(border: int, frames: int, height: int, width: int) -> None:
    """What the border holds does not count, nor do the last products."""
    shape = (frames, height + 2 * border, width + 2 * border, PRODUCTS)
    products = draw("products", shape).to(triton_here.DEVICE, torch.bfloat16)
    products[..., 27:] = torch.nan
    if border:
        products[:, [0, -1]] = products[:, :, [0, -1]] = torch.nan
    scale, bias = (x.to(triton_here.DEVICE) for x in (torch.tensor(0.7), draw("bias", (3,))))
    expected = torch.empty(3, frames, height, width, device=products.device)
    last_layers.gather(products, scale, bias, expected)
    found = torch.full((3, frames + 2, height, width), torch.nan, device=products.device)
    triton_here.module("last_layers_triton").gather(products, scale, bias, found[:, 1:-1])
    assert relative_error(found[:, 1:-1], expected) < 1e-6
    assert found[:, [0, -1]].isnan().all()


def test_what_kernels_cannot_do_is_refused() -> None:
    kernels = triton_here.module("last_layers_triton")
    with pytest.raises(UserError, match="projects 24 channels"):
        kernels.project(picture(24, 1, 2, 2), projection(torch.zeros(3, 24, 3, 3)))
    products = torch.zeros(1, 4, 4, PRODUCTS, device=triton_here.DEVICE)
    with pytest.raises(UserError, match="strides"):
        kernels.gather(products, *products.new_zeros(2, 3), products.new_zeros(3, 1, 4, 8)[..., ::2])


def weights() -> list[Tensor]:
    shapes = {"middle": (CHANNELS, CHANNELS, 3, 3), "last": (3, CHANNELS, 3, 3)}
    return [draw(name, shape).to(triton_here.DEVICE) for name, shape in shapes.items()]


@pytest.mark.parametrize(("frames", "height", "width"), SIZES)
def test_rounded_layers_are_two_convolutions(frames: int, height: int, width: int) -> None:
    """With the weights that they were rounded to, and pixels that are whole numbers of what fp8 has."""
    middle, last = weights()
    values, scales = quantise_rows_torch(middle.flatten(1), gelu=False)
    middle = (values.float() * scales[:, None]).view_as(middle)
    layers = LastLayers.of(middle, last)
    less = torch.arange(CHANNELS, device=middle.device) % 4 / 2
    pixels = (8 * picture(CHANNELS, frames, height, width)).round().clamp(0, 8)
    scale = torch.tensor(0.5, device=pixels.device)
    rows = ((F.pad(pixels, (1, 1, 1, 1)) - less[:, None, None]) / scale).permute(0, 2, 3, 1).to(torch.float8_e4m3fn)
    products = last_layers.convolve(rows, layers, layers.offset(less, scale))
    out = torch.empty(3, frames, height, width, device=pixels.device)
    bias = draw("b", (3,)).to(pixels.device)
    last_layers.gather(products, scale, bias, out)
    expected = 2 * F.conv2d(F.conv2d(pixels, middle, padding=1).relu(), last, bias, padding=1) - 1
    assert relative_error(out.transpose(0, 1), expected) < 1e-4
    expected = torch.empty_like(out)
    triton_here.module("last_layers_triton").gather(products, scale, bias, expected)
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("steps", "channels", "height", "width"), [(1, 16, 1, 1), (2, 32, 3, 17), (3, 128, 5, 16)])
def test_phases_are_rounded_in_their_place(stride: int, steps: int, channels: int, height: int, width: int) -> None:
    x = picture(stride * 4 * channels, steps, height + 1, width + 1)
    less = last_layers.means(x, channels)
    assert less.shape == (channels,)
    scale = x.abs().max() / 400
    for factor in (scale, scale / 2):  # of half of it, some are larger than what fits
        found = last_layers.interleave_rounded(x, stride, factor, less)
        assert found.shape == (steps * stride, 2 * height + 2, 2 * width + 2, channels)
        frames = F.pad(interleave(x, stride), (1, 1, 1, 1)).permute(0, 2, 3, 1)
        exact = ((frames - less) / factor).clamp(-448, 448)
        assert ((found.float() - exact).abs() <= exact.abs() / 16 + 2**-10).all()
        of_triton = triton_here.module("last_layers_triton").interleave_rounded(x, stride, factor, less)
        if x.is_cuda:
            assert torch.equal(of_triton.view(torch.uint8), found.view(torch.uint8))
        # Triton's interpreter halves what rounds up to a power of two, and cuts the smallest numbers off.
        difference = (of_triton.float() - found.float()).abs()
        assert (difference <= found.float().abs() / 2 + 2**-9).all()
        assert (difference == 0).float().mean() > 0.9


def test_means_are_of_channels() -> None:
    x = torch.arange(24.0).expand(2, 9, 20, 24).permute(0, 3, 1, 2)
    assert torch.equal(last_layers.means(x, 6), torch.tensor([9.0, 10, 11, 12, 13, 14]))


@pytest.fixture(scope="module")
def hopper() -> ModuleType:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    return triton_here.module("hopper_convolution")


def rows(frames: int, height: int, width: int) -> Tensor:
    x = draw("rows", (frames, height + 2, width + 2, CHANNELS))
    return x.to(triton_here.DEVICE, torch.float8_e4m3fn)


@pytest.mark.gpu
@pytest.mark.parametrize(("frames", "height", "width"), [*SIZES, (4, 61, 131), (2, 300, 500)])
def test_hopper_convolves_as_the_reference(hopper: ModuleType, frames: int, height: int, width: int) -> None:
    layers = LastLayers.of(*(w.bfloat16() for w in weights()))
    x = rows(frames, height, width)
    offset = draw("offset", (CHANNELS,)).to(x.device)
    expected = last_layers.convolve(x, layers, offset)
    found = hopper.convolve(x, layers, offset)
    assert found.shape == expected.shape
    inner = (slice(None), slice(1, -1), slice(1, -1), slice(0, 27))
    assert relative_error(found[inner].float(), expected[inner].float()) < 0.01
    for _ in range(5):
        assert torch.equal(hopper.convolve(x, layers, offset)[inner], found[inner])


@pytest.mark.gpu
def test_hopper_refuses_other_channels(hopper: ModuleType) -> None:
    with pytest.raises(UserError, match="convolves 64 channels"):
        hopper.convolve(rows(1, 2, 2)[..., :64].contiguous(), LastLayers.of(*weights()), torch.zeros(128))
