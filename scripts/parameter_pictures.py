"""Makes the pictures of docs/parameters.md from the bundled clip with the embedded model: about 5 minutes on 2 cores.

python scripts/parameter_pictures.py
"""

import io
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from flashvsr_core.config import UpscaleParams
from flashvsr_core.upscaler import Upscaler, resolve_params
from tasks import weights
from tasks.media.decode import read_frames
from tasks.media.probe import probe

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "assets" / "bbb.mp4"
IMAGES = ROOT / "docs" / "images"
FIRST, SHOWN = 0, 12  # a stream from FIRST; the frame of it that is shown
PART = (0.14, 0.22, 0.68, 0.80)  # left, top, right, bottom of the picture that is shown
WIDTH = 360  # pixels of one panel


def enlarged(frames: np.ndarray, params: UpscaleParams) -> np.ndarray:
    """The shown frame by the embedded model, uint8 H W 3."""
    found = weights.locate("nano", "tiny", None, "refuse")
    device = torch.device("cpu")
    upscaler = Upscaler.load(weights.load(found), resolve_params(params, found.spec, device), device)
    emitted = upscaler.stream(iter([frames]), first=FIRST, emit=(FIRST, FIRST + SHOWN + 1))
    return np.concatenate(list(emitted))[SHOWN]


def bicubic(frame: np.ndarray, scale: int) -> np.ndarray:
    height, width = frame.shape[:2]
    size = (width * scale, height * scale)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def encoded(frame: np.ndarray, crf: int) -> np.ndarray:
    """The frame after x264 at this quality."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": str(crf), "preset": "medium"})
        stream.height, stream.width = frame.shape[:2]
        stream.pix_fmt = "yuv420p"
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(frame)), *stream.encode(None)):
            container.mux(packet)
    file.seek(0)
    with av.open(file) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def strip(name: str, panels: list[tuple[str, np.ndarray]]) -> None:
    """Panels side by side with their labels, as docs/images/NAME.webp."""
    cut = [(label, _part(picture)) for label, picture in panels]
    height = max(picture.height for _, picture in cut)
    sheet = Image.new("RGB", (len(cut) * (WIDTH + 8) - 8, height + 26), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (label, picture) in enumerate(cut):
        sheet.paste(picture, (i * (WIDTH + 8), 26))
        draw.text((i * (WIDTH + 8) + 2, 4), label, fill="black", font=font)
    sheet.save(IMAGES / f"{name}.webp", quality=82, method=6)


def _part(picture: np.ndarray) -> Image.Image:
    height, width = picture.shape[:2]
    left, top, right, bottom = PART
    box = (round(left * width), round(top * height), round(right * width), round(bottom * height))
    found = Image.fromarray(picture).crop(box)
    return found.resize((WIDTH, round(WIDTH * found.height / found.width)), Image.Resampling.LANCZOS)


def main() -> None:
    info = probe(CLIP)
    frames = np.concatenate(list(read_frames(CLIP, info, FIRST, FIRST + 25)))
    source = frames[SHOWN]
    base = UpscaleParams(model="nano")
    made = {scale: enlarged(frames, replace(base, scale=scale)) for scale in (2, 3, 4)}
    scales = [(f"scale {scale}", made[scale]) for scale in (2, 3, 4)]
    strip("scale", [("bicubic, 4", bicubic(source, 4)), *scales])
    strip("crf", [(f"crf {crf}", encoded(made[4], crf)) for crf in (12, 18, 26, 34)])


if __name__ == "__main__":
    main()
