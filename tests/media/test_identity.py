"""Pictures that go through reading and writing without a model: which code values come back."""

from pathlib import Path

import numpy as np
import pytest

from tasks.media.encode import EncodeParams
from tests.media.clips import copy_through, run
from tests.media.test_decode import LUMA

WIDTH, HEIGHT = 320, 64
RAMP = f"geq=lum='64+876*X/{WIDTH - 1}':cb=512:cr=512"
SOURCES = {
    "ramp": f"color=gray:s={WIDTH}x{HEIGHT}:r=25:d=0.12,format=yuv444p10le,{RAMP}",
    "bars": f"smptehdbars=s={WIDTH}x{HEIGHT}:r=25:d=0.12,format=yuv444p10le",
}
TAGS = {"bt709": "bt709", "bt2020": "bt2020nc", "bt601": "smpte170m"}


def planes(path: Path, pix_fmt: str = "yuv444p10le") -> np.ndarray:
    """Code values T 3 H W as the file holds them."""
    run("-i", path, "-map", "0:v", "-f", "rawvideo", "-pix_fmt", pix_fmt, path.with_suffix(".raw"))
    return np.fromfile(path.with_suffix(".raw"), "<u2").reshape(-1, 3, HEIGHT, WIDTH).astype(int)


def in_gamut(codes: np.ndarray, matrix: str) -> np.ndarray:
    """Which pixels (T H W) of 10-bit limited range are colours between black and white in every channel."""
    kr, kb = LUMA[matrix]
    luma, u, v = (codes[:, 0] - 64) / 876, (codes[:, 1] - 512) / 896, (codes[:, 2] - 512) / 896
    red, blue = luma + 2 * (1 - kr) * v, luma + 2 * (1 - kb) * u
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    rgb = np.stack([red, green, blue])
    return ((rgb > -0.0005) & (rgb < 1.0005)).all(axis=0)


@pytest.mark.parametrize("matrix", TAGS)
@pytest.mark.parametrize("picture", SOURCES)
def test_ten_bits_come_back_within_one_code(tmp_path: Path, picture: str, matrix: str) -> None:
    """All colours that RGB has; what lies outside (blacker than black, whiter than white) is clipped, as documented."""
    source = tmp_path / "in.mkv"
    tags = f"setparams=colorspace={TAGS[matrix]}:range=tv"
    run("-f", "lavfi", "-i", f"{SOURCES[picture]},{tags}", "-c:v", "ffv1", source)
    encode = EncodeParams(codec="ffv1", container="mkv", pix_fmt="yuv444p10le")
    copy_through(source, tmp_path / "out.mkv", encode, 2, tmp_path)
    before, after = planes(source), planes(tmp_path / "out.mkv")
    assert before.shape == after.shape == (3, 3, HEIGHT, WIDTH)
    legal = in_gamut(before, matrix)
    assert legal.mean() > 0.5
    assert np.abs(after - before).max(axis=1)[legal].max() <= 1
    if picture == "ramp":
        assert len(np.unique(before[:, 0])) > 300  # the source does use its ten bits


def test_pq_code_values_come_back(tmp_path: Path) -> None:
    """HDR10 through identity settings: the error in PQ code values of 10 bits."""
    source = tmp_path / "in.mkv"
    tags = "setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084:range=tv"
    run("-f", "lavfi", "-i", f"{SOURCES['ramp']},{tags}", "-c:v", "ffv1", source)
    copy_through(
        source, tmp_path / "out.mkv", EncodeParams(codec="ffv1", container="mkv", pix_fmt="yuv444p10le"), 1, tmp_path
    )
    assert np.abs(planes(tmp_path / "out.mkv") - planes(source)).max() <= 1


def test_twelve_bits_keep_more_than_ten(tmp_path: Path) -> None:
    ramp = (
        f"color=gray:s={WIDTH}x{HEIGHT}:r=25:d=0.04,format=yuv444p12le,geq=lum='256+3504*X/{WIDTH - 1}':cb=2048:cr=2048"
    )
    source = tmp_path / "in.mkv"
    run("-f", "lavfi", "-i", f"{ramp},setparams=colorspace=bt709:range=tv", "-c:v", "ffv1", source)
    encode = EncodeParams(codec="ffv1", container="mkv", pix_fmt="yuv444p12le")
    copy_through(source, tmp_path / "out.mkv", encode, 1, tmp_path)
    before, after = planes(source, "yuv444p12le"), planes(tmp_path / "out.mkv", "yuv444p12le")
    assert np.abs(after - before).max() <= 1
    assert np.any(before[:, 0] % 4)  # what ten bits would round away
