"""Comparisons of a preview: pictures as they are displayed, nothing of the source's HDR in them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.media.decode import read_frames
from tasks.media.hdr import ContentLight, MasteringDisplay
from tasks.media.probe import probe
from tasks.preview import Excerpt, Layout, write_picture, write_video
from tests.media.clips import run
from tests.media.reader import picture, side_data

SKY, GROUND = (0, 0, 255), (255, 0, 0)
DISPLAY = MasteringDisplay((34000, 16000), (13250, 34500), (7500, 3000), (15635, 16450), 10_000_000, 50)


def turned(folder: Path, size: str, degrees: int) -> Path:
    """Blue on the side that is the top once the picture is turned, red elsewhere."""
    blue = {90: "X-W/2", -90: "W/2-X-1"}[degrees]  # counter-clockwise: the right side goes up
    rgb = f"nullsrc=s={size}:r=25:d=0.2,format=gbrp,geq=r='255*lt({blue},0)':g=0:b='255*gte({blue},0)'"
    run("-f", "lavfi", "-i", rgb, "-c:v", "libx264", "-pix_fmt", "yuv444p", "-qp", "1", folder / f"{size}.mp4")
    path = folder / f"turned_{size}.mp4"
    run("-display_rotation", str(degrees), "-i", folder / f"{size}.mp4", "-c", "copy", path)
    return path


@pytest.mark.parametrize("degrees", [90, -90])
@pytest.mark.parametrize("layout", ["side", "split"])
def test_pictures_stand_as_players_turn_them(tmp_path: Path, degrees: int, layout: Layout) -> None:
    source, result = turned(tmp_path, "48x32", degrees), turned(tmp_path, "96x64", degrees)
    info = replace(
        probe(source), sample_aspect_ratio=(4, 3), mastering_display=DISPLAY, content_light=ContentLight(1000, 400)
    )
    excerpts = (Excerpt(0, 5, info, result),)
    write_picture(source, excerpts, 2, ("a", "b"), tmp_path / "c.png")
    write_video(source, excerpts, 2, layout, ("a", "b"), tmp_path / "c.mp4")
    sheet = np.asarray(Image.open(tmp_path / "c.png"))
    columns = 2 if layout == "side" else 1
    assert sheet.shape == (96, 3 * 64, 3)
    made = probe(tmp_path / "c.mp4")
    assert (made.width, made.height, made.rotation, made.sample_aspect_ratio) == (columns * 64, 96, 0, (3, 4))
    frame = next(read_frames(tmp_path / "c.mp4", made, 2, 3))[0]
    for shown, count in ((sheet, 3), (frame, columns)):
        for left in range(0, count * 64, 64):
            part = shown[:, left + 4 : left + 28].astype(int)  # the split's line lies in the middle
            assert np.abs(part[36:44] - SKY).mean() < 20
            assert np.abs(part[52:92] - GROUND).mean() < 20
    assert picture(tmp_path / "c.mp4")["color_space"] == "bt709"
    assert not {kind for kind in side_data(tmp_path / "c.mp4") if "Mastering" in kind or "light" in kind}
