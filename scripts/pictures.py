"""Makes the pictures of the documents from the bundled clip with the embedded model.

python scripts/pictures.py parameters   # those of docs/parameters.md: about 5 minutes on 2 cores
python scripts/pictures.py demo         # the README's, from what `make demo` wrote
python scripts/pictures.py card FOLDER  # docs/images/nano.png, from clips of the training cache (its folder `eval`)
"""

import io
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from flashvsr_core.config import UpscaleParams
from flashvsr_core.training import evaluate
from flashvsr_core.training.degrade import DEGRADATIONS
from flashvsr_core.upscaler import Upscaler, resolve_params
from flashvsr_core.weights import embedded_weights
from tasks import weights
from tasks.media.decode import read_frames
from tasks.media.probe import probe

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "assets" / "bbb.mp4"
IMAGES = ROOT / "docs" / "images"
FIRST, SHOWN = 0, 12  # a stream from FIRST; the frame of it that is shown
PART = (0.14, 0.22, 0.68, 0.80)  # left, top, right, bottom of the picture that is shown
WIDTH = 360  # pixels of one panel
DEMO = ROOT / "demo" / "bbb_4x.mp4"
DEMO_FRAME, DEMO_PART = 12, (0.49, 0.12, 1.0, 0.9)
CARD_CLIPS, CARD_FRAMES, CARD_FRAME, CARD_SIDE, CARD_SHOWN = ("street", "animation"), 29, 20, 384, 256


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


def with_drift(picture: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The picture above what its colours add to the source's: difference of low frequencies, 8 times, on grey."""
    height, width = source.shape[:2]
    small = [np.asarray(Image.fromarray(p).resize((width // 8, height // 8), Image.Resampling.BOX), np.int16)
             for p in (picture, source)]  # fmt: skip
    drift = (128 + 8 * (small[0] - small[1])).clip(0, 255).astype(np.uint8)
    shown = Image.fromarray(drift).resize((picture.shape[1], picture.shape[0]), Image.Resampling.BICUBIC)
    return np.concatenate([whole_part(p) for p in (picture, np.asarray(shown))])


def strip(name: str, panels: list[tuple[str, np.ndarray]], width: int = WIDTH) -> None:
    """Panels of `width` pixels side by side with their labels, as docs/images/NAME.webp."""
    cut = [(label, _fitted(Image.fromarray(picture), width)) for label, picture in panels]
    height = max(picture.height for _, picture in cut)
    sheet = Image.new("RGB", (len(cut) * (width + 8) - 8, height + 26), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (label, picture) in enumerate(cut):
        sheet.paste(picture, (i * (width + 8), 26))
        draw.text((i * (width + 8) + 2, 4), label, fill="black", font=font)
    sheet.save(IMAGES / f"{name}.webp", quality=82, method=6)


def whole_part(picture: np.ndarray, part: tuple[float, float, float, float] = PART) -> np.ndarray:
    """The part (left, top, right, bottom, as shares of the picture) that is shown."""
    height, width = picture.shape[:2]
    left, top, right, bottom = part
    return picture[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, round(width * picture.height / picture.width)), Image.Resampling.LANCZOS)


def frame_of(path: Path, number: int) -> np.ndarray:
    """One frame of a video, uint8 H W 3."""
    return np.concatenate(list(read_frames(path, probe(path), number, number + 1)))[0]


def parameters() -> None:
    info = probe(CLIP)
    frames = np.concatenate(list(read_frames(CLIP, info, FIRST, FIRST + 25)))
    source = frames[SHOWN]
    base = UpscaleParams(model="nano")
    made = {scale: enlarged(frames, replace(base, scale=scale)) for scale in (2, 3, 4)}
    scales = [(f"scale {scale}", made[scale]) for scale in (2, 3, 4)]
    strip("scale", [(label, whole_part(p)) for label, p in [("bicubic, 4", bicubic(source, 4)), *scales]])
    strip("crf", [(f"crf {crf}", whole_part(encoded(made[4], crf))) for crf in (12, 18, 26, 34)])
    fixed = {fix: enlarged(frames, replace(base, color_fix=fix)) for fix in ("none", "adain", "wavelet")}
    strip("color", [(fix, with_drift(picture, source)) for fix, picture in fixed.items()])


def demo() -> None:
    """Before and after, pixel for pixel: bicubic enlargement of the source beside the output of `make demo`."""
    if not DEMO.exists():
        sys.exit(f"{DEMO} does not exist; run `make demo` first")
    panels = [
        ("before (bicubic)", bicubic(frame_of(CLIP, DEMO_FRAME), 4)),
        ("after (nano)", frame_of(DEMO, DEMO_FRAME)),
    ]
    shown = [(label, whole_part(picture, DEMO_PART)) for label, picture in panels]
    strip("demo", shown, width=shown[0][1].shape[1])


def card(folder: Path) -> None:
    """The contact sheet: per clip and damage the source (pixels repeated), bicubic, nano and the truth, at 100 %."""
    upscaler = Upscaler.load(embedded_weights(), UpscaleParams(model="nano", scenes="off", preroll=0, precision="fp32"))
    lines = []
    for name in CARD_CLIPS:
        truth = evaluate.crop(np.load(folder / f"{name}.npy", mmap_mode="r")[:CARD_FRAMES], CARD_SIDE)
        for degradation in DEGRADATIONS:
            small = evaluate.damaged(truth, degradation, 4)
            repeated = small[CARD_FRAME].repeat(4, axis=0).repeat(4, axis=1)
            made = [evaluate.bicubic(small, 4)[CARD_FRAME], evaluate.upscale(upscaler, small)[CARD_FRAME]]
            lines.append(np.concatenate([_middle(p) for p in (repeated, *made, truth[CARD_FRAME])], axis=1))
    sheet = Image.fromarray(np.concatenate(lines))
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(("source", "bicubic", "nano", "truth")):
        draw.rectangle((i * CARD_SHOWN, 0, i * CARD_SHOWN + 52, 12), fill="black")
        draw.text((i * CARD_SHOWN + 2, 1), label, fill="white")
    sheet.save(IMAGES / "nano.png", optimize=True)


def _middle(picture: np.ndarray) -> np.ndarray:
    top, left = ((n - CARD_SHOWN) // 2 for n in picture.shape[:2])
    return picture[top : top + CARD_SHOWN, left : left + CARD_SHOWN]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["parameters"]:
            parameters()
        case ["demo"]:
            demo()
        case ["card", folder]:
            card(Path(folder))
        case _:
            sys.exit(__doc__)
