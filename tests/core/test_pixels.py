"""Pixels in and out: enlargement, padding, quantisation, RGB to YUV."""

import numpy as np
import pytest
import torch
from PIL import Image

from flashvsr_core.geometry import Geometry
from flashvsr_core.layout import YuvLayout
from flashvsr_core.pixels import crop, enlarge, pad, quantise_rgb, rgb_packer, rgb_to_yuv, yuv_packer
from tests.core import triton_here

MATRICES = {"bt601": (0.299, 0.587, 0.114), "bt709": (0.2126, 0.7152, 0.0722), "bt2020": (0.2627, 0.6780, 0.0593)}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_enlargement_is_the_cubic_kernel_of_pil(scale: int) -> None:
    frame = 80 + noise(1, 23, 31, 3) // 3  # no overshoot beyond 8 bits, which PIL cuts off between its two passes
    ours = rgb_packer(8)(enlarge(torch.from_numpy(frame), Geometry(31, 23, scale)))
    theirs = np.asarray(Image.fromarray(frame[0]).resize((31 * scale, 23 * scale), Image.Resampling.BICUBIC))
    assert np.abs(np.asarray(ours)[0].astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(31, 23), (32, 32), (1, 1), (200, 3)])
def test_padding_keeps_the_picture_and_reaches_whole_windows(width: int, height: int) -> None:
    geometry = Geometry(width, height, 2)
    x = torch.rand(2, 3, geometry.out_height, geometry.out_width)
    padded = pad(x, geometry)
    assert padded.shape[-2] % 128 == padded.shape[-1] % 128 == 0
    assert torch.equal(crop(padded, geometry), x)


@pytest.mark.parametrize("depth", [8, 16])
def test_every_level_survives(depth: int) -> None:
    levels = np.arange(256, dtype=np.uint8) if depth == 8 else np.arange(0, 65536, 257, dtype=np.uint16)
    frame = torch.from_numpy(np.broadcast_to(levels[None, None, :, None], (1, 4, 256, 3)).copy())
    peak = 2**depth - 1
    x = frame.permute(0, 3, 1, 2).float() * (2 / peak) - 1
    assert np.array_equal(rgb_packer(depth)(x), frame.numpy())  # type: ignore[arg-type]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("depth", [8, 10, 12])
@pytest.mark.parametrize("full", [False, True])
def test_yuv_444_inverts_within_a_level(matrix: str, depth: int, full: bool) -> None:
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    y, u, v = (p.float() for p in rgb_to_yuv(x, YuvLayout("444", depth, matrix, full)))  # type: ignore[arg-type]
    unit = 2 ** (depth - 8)
    peak = 2**depth - 1
    luma, chroma, black = (peak, peak, 0) if full else (219 * unit, 224 * unit, 16 * unit)
    kr, kg, kb = MATRICES[matrix]
    y, u, v = (y - black) / luma, (u - 128 * unit) / chroma, (v - 128 * unit) / chroma
    r, b = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    g = (y - kr * r - kb * b) / kg
    back = torch.stack([r, g, b], dim=1) * 2 - 1
    assert float((back - x).abs().max()) < 2 * 1.5 / (219 * unit)


def test_known_colours_of_bt709() -> None:
    """SMPTE RP 219: 100 % colours in 8 bits, limited range."""
    colours = {
        (1, 1, 1): (235, 128, 128),
        (0, 0, 0): (16, 128, 128),
        (1, 0, 0): (63, 102, 240),
        (0, 0, 1): (32, 240, 118),
    }
    for rgb, expected in colours.items():
        x = (torch.tensor(rgb).float() * 2 - 1)[None, :, None, None].expand(1, 3, 2, 2)
        assert tuple(int(p.flatten()[0]) for p in rgb_to_yuv(x, YuvLayout("420", 8, "bt709"))) == expected


def test_chroma_is_sited_left_and_between_rows() -> None:
    """A horizontal ramp keeps its chroma at even columns; a vertical one takes the mean of two rows."""
    ramp = torch.linspace(-0.5, 0.5, 16)
    red = torch.zeros(1, 3, 4, 16)
    red[:, 0] = ramp
    fine = rgb_to_yuv(red, YuvLayout("444", 12, "bt709"))[2].int()
    coarse = rgb_to_yuv(red, YuvLayout("420", 12, "bt709"))[2].int()
    assert int((coarse[0, 0, 1:] - fine[0, 0, 2::2]).abs().max()) <= 1


@pytest.mark.parametrize("size", [(5, 7), (6, 8), (1, 1)])
def test_planes_of_odd_sizes(size: tuple[int, int]) -> None:
    y, u, v = yuv_packer(YuvLayout("420", 8, "bt709"))(torch.zeros(2, 3, *size))
    assert y.shape == (2, *size)
    assert u.shape == v.shape == (2, -(-size[0] // 2), -(-size[1] // 2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(1, 1, 1), (2, 7, 33), pytest.param(3, 2, 1100, marks=pytest.mark.system)],  # half a minute to interpret
)
def test_whole_numbers_by_triton_are_those_of_pytorch(frames: int, height: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    whole = torch.rand(3, frames, height + 2, width + 5, generator=generator) * 2.2 - 1.1  # beyond the range, too
    whole[0, 0, 0, 0] = -1 + 2 * 0.5 / torch.iinfo(dtype).max  # between two whole numbers
    x = whole.to(triton_here.DEVICE).transpose(0, 1)[..., :height, :width]  # as a cropped picture lies in memory
    found = triton_here.module("pixels_triton").quantise_rgb(x, dtype)
    assert found.is_contiguous()
    assert torch.equal(found.cpu(), quantise_rgb(x, dtype).cpu())
    assert torch.equal(
        triton_here.module("pixels_triton").quantise_rgb(x.transpose(2, 3), dtype), found.transpose(1, 2)
    )
