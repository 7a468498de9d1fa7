"""Seams: python -m tests.bench.tiling [FOOTAGE ...] [--pictures FOLDER] writes the tables of tests/bench/tiling.md.

The embedded model on pieces of real footage, in tiles against untiled: the first step of a stream, of 9 frames. Small
tiles: two in a row; large ones: a slice as wide as 4K. Footage: the shots of `assets/bbb.mp4` and the
photograph there, and what is named: films (any video, or T H W 3 as .npy) are reduced as far as the picture allows,
photographs moved by a synthetic camera. Every clip is cut at `--places` random places, so that what lies on the lines
differs. `--pictures` writes differences, amplified 16 times, under each piece.
"""

import argparse
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flashvsr_core.config import UpscaleParams
from flashvsr_core.geometry import Geometry, TileSize
from flashvsr_core.noise import step_noise
from flashvsr_core.picture import Painter
from flashvsr_core.pixels import crop, enlarge, pad, rgb_packer
from flashvsr_core.stream import latents_of
from flashvsr_core.tiling import EDGE_PIXELS, LATENT_PIXELS, Tile, dit_tiles
from flashvsr_core.training.camera import draw_path, pyramid, render
from flashvsr_core.training.degrade import reduce
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import embedded_weights

ASSETS = Path(__file__).parents[2] / "assets"
SHOTS = (0, 28, 64, 96)  # of bbb.mp4
PARAMS = UpscaleParams(model="nano", scenes="off", preroll=0)
READ = 9  # frames; 5 are emitted
BAND = 8  # pixels to either side of a line
BESIDE = 24  # pixels of its surroundings to either side of a band
AMPLIFIED = 16
PHOTOGRAPHS = (".jpg", ".jpeg", ".png")
FIGURES = "## What the figures say"


@dataclass(frozen=True)
class Case:
    """A tile and its overlap, in pixels, and the source's size that they are measured on."""

    tile: str
    overlap: int
    height: int
    width: int

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.width, self.height, PARAMS.scale)

    @property
    def tiles(self) -> tuple[Tile, ...]:
        return dit_tiles(self.geometry, TileSize.parse(self.tile), self.overlap)

    @property
    def area(self) -> float:
        """What is computed, in pictures."""
        height, width = self.geometry.padded_height, self.geometry.padded_width
        return sum(tile.height * tile.width for tile in self.tiles) / (height * width)


CASES = (
    Case("1024", 256, 32, 960),
    Case("768", 256, 32, 960),
    Case("640", 256, 32, 960),
    Case("512", 256, 108, 192),
    Case("384", 128, 108, 160),
    Case("384", 0, 108, 192),  # never chosen: what these figures are where there is a seam
)


class Footage(Protocol):
    """Where clips come from."""

    @property
    def name(self) -> str: ...
    def piece(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray | None:
        """A random one, READ height width 3, uint8; None: it is too small."""


@dataclass(frozen=True)
class Film:
    name: str
    frames: np.ndarray  # T H W 3, uint8

    def piece(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray | None:
        shrink = min(self.frames.shape[1] // height, self.frames.shape[2] // width)
        if not shrink or len(self.frames) < READ:
            return None
        size = (READ, height * shrink, width * shrink)
        first, top, left = (int(rng.integers(0, n - want + 1)) for n, want in zip(self.frames.shape, size))
        clip = self.frames[first : first + READ, top : top + size[1], left : left + size[2]]
        x = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float() / 255
        return _bytes(reduce(x, shrink) if shrink > 1 else x)


@dataclass(frozen=True)
class Photo:
    name: str
    levels: Sequence[Tensor]

    def piece(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray | None:
        size = max(height, width)
        if self.levels[0].shape[-2] < height or self.levels[0].shape[-1] < width:
            return None
        path = draw_path(rng, READ, self.levels[0].shape[-2:], size)
        top, left = (size - height) // 2, (size - width) // 2
        return _bytes(render(list(self.levels), path, size)[..., top : top + height, left : left + width])


def _bytes(x: Tensor) -> np.ndarray:
    return (x * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def footage(paths: Sequence[Path] = ()) -> Iterator[Footage]:
    """What lies in `assets`, and `paths`."""
    demo = decoded(ASSETS / "bbb.mp4")
    for first, stop in pairwise(SHOTS):
        yield Film(f"bbb from {first}", demo[first:stop])
    for path in (ASSETS / "seeding.jpg", *paths):
        if path.suffix in PHOTOGRAPHS:
            picture = np.array(Image.open(path).convert("RGB"))
            yield Photo(path.stem, pyramid(torch.from_numpy(picture).permute(2, 0, 1).float() / 255))
        else:
            yield Film(path.stem, np.load(path, mmap_mode="r") if path.suffix == ".npy" else decoded(path))


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@torch.inference_mode()
def enlarged(upscaler: Upscaler, frames: np.ndarray, tile: TileSize | None, overlap: int) -> np.ndarray:
    """A stream's first step, of fewer frames than usual: READ h w 3 -> READ-4 4h 4w 3, uint8."""
    geometry = Geometry(frames.shape[2], frames.shape[1], PARAMS.scale)
    sparsity = upscaler.sparsity(geometry)
    painter = Painter(upscaler.net, upscaler.offloader, geometry, sparsity, PARAMS.local_range, tile, overlap)
    state = painter.open(PARAMS.kv_ratio, 0, 1, None)
    source = pad(enlarge(torch.from_numpy(frames), geometry), geometry).transpose(0, 1)[None]
    size = (geometry.padded_height // LATENT_PIXELS, geometry.padded_width // LATENT_PIXELS)
    noise = step_noise(PARAMS.seed, 0, latents_of(len(frames), True), (upscaler.spec.dit.in_dim, *size))
    condition, latents = painter.latents(state, lambda: source, noise)
    picture = crop(painter.decode(state, latents, condition)[0].transpose(0, 1), geometry)
    return np.asarray(rgb_packer(8)(picture))


@dataclass(frozen=True)
class Errors:
    """Mean square errors of one clip in tiles against untiled: over all, outside of all bands, and of each kind of band
    inside of them and beside them."""

    whole: float
    rest: float
    bands: Mapping[str, float]
    beside: Mapping[str, float]

    @property
    def psnr(self) -> float:
        return float(10 * np.log10(255**2 / self.whole))

    def ratio(self, kind: str) -> float:
        return float(np.sqrt(self.bands[kind] / self.rest))

    @property
    def worst(self) -> str:
        return max(self.bands, key=self.ratio)


def errors(tiled: np.ndarray, whole: np.ndarray, tiles: Sequence[Tile]) -> Errors:
    """Compare T H W 3; bands of each kind of line, in either direction, are taken together."""
    error = np.square(tiled.astype(np.float64) - whole).mean(axis=(0, 3))
    rows = _lines(sorted({tile.top for tile in tiles}), tiles[0].height)
    columns = _lines(sorted({tile.left for tile in tiles}), tiles[0].width)
    kinds = [kind for kind in rows if rows[kind] or columns[kind]]
    bands = {kind: _around(error.shape, rows[kind], columns[kind], BAND) for kind in kinds}
    rest = ~np.any(list(bands.values()), axis=0)
    near = {kind: rest & _around(error.shape, rows[kind], columns[kind], BAND + BESIDE) for kind in kinds}
    inside, beside = ({kind: float(error[mask].mean()) for kind, mask in masks.items()} for masks in (bands, near))
    return Errors(float(error.mean()), float(error[rest].mean()), inside, beside)


def _around(shape: tuple[int, ...], rows: Sequence[int], columns: Sequence[int], reach: int) -> np.ndarray:
    found = np.zeros(shape, bool)
    for line in rows:
        found[max(0, line - reach) : line + reach] = True
    for line in columns:
        found[:, max(0, line - reach) : line + reach] = True
    return found


def _lines(starts: Sequence[int], size: int) -> dict[str, list[int]]:
    """Where a seam could be: edges of tiles, where a weight begins to rise or has fallen, where both are even."""
    found: dict[str, list[int]] = {"edge": [], "turn": [], "even": []}
    for start, following in pairwise(starts):
        low, high = following, start + size
        edge = EDGE_PIXELS if high > low else 0
        found["edge"] += [low, high]
        found["turn"] += [low + edge, high - edge]
        found["even"].append((low + high) // 2)
    return found


def pooled(clips: Sequence[Errors], kind: str) -> float:
    """Root mean square of the clips' ratios: all weigh the same, however large their errors are."""
    return float(np.sqrt(np.mean([clip.bands[kind] / clip.rest for clip in clips])))


def steepest(clips: Sequence[Errors]) -> float:
    """The same against what lies beside the bands, of the worst kind: only what is narrow raises it."""
    return max(float(np.sqrt(np.mean([c.bands[kind] / c.beside[kind] for c in clips]))) for kind in clips[0].bands)


def summed(clips: Sequence[Errors], kind: str) -> float:
    """The ratio of all errors: clips weigh by the size of theirs."""
    return float(np.sqrt(np.sum([clip.bands[kind] for clip in clips]) / np.sum([clip.rest for clip in clips])))


def difference(tiled: np.ndarray, whole: np.ndarray) -> Image.Image:
    """The last frame, and below it the difference around grey."""
    error = (128 + AMPLIFIED * (tiled[-1].astype(int) - whole[-1])).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.concatenate([tiled[-1], error]))


def measured(
    upscaler: Upscaler, sources: Sequence[Footage], cases: Sequence[Case], places: int, pictures: Path | None = None
) -> Iterator[tuple[Case, str, Errors]]:
    """Every case on every clip that is large enough for it."""
    for number, source in enumerate(sources):
        for place in range(places):
            done: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
            for case in cases:
                size = case.height, case.width
                if size not in done:
                    frames = source.piece(np.random.default_rng([number, place, *size]), *size)
                    if frames is None:
                        continue
                    done[size] = frames, enlarged(upscaler, frames, None, 0)
                frames, whole = done[size]
                tiled = enlarged(upscaler, frames, TileSize.parse(case.tile), case.overlap)
                if pictures is not None:
                    name = f"{case.tile}-{case.overlap}-{source.name.replace(' ', '-')}-{place}.png"
                    difference(tiled, whole).save(pictures / name)
                yield case, source.name, errors(tiled, whole, case.tiles)


HEAD = """# Tiles against the untiled picture

{doc}
{by}.
Bands are 16 pixels wide, around edges of tiles ("edge"), where a tile's weight begins to rise or has fallen ("turn"),
and where both are even ("even"). Ratios are root mean square errors in the bands of a kind against the rest, which is
all that lies in no band: first of all clips, each weighing the same, and in brackets of the sum of their errors.
"Worst": the largest of a single clip. "Beside": the worst kind against the 24 pixels to either side of its bands, all
clips. "On lines": the largest error of a kind of band in any clip, in steps of 255; rounding to 8 bits is 0.29. "Area":
what is computed, in pictures. Overlap 0 is never chosen by itself: it shows what a seam looks like here.

| tile | overlap | output | clips | PSNR dB, least | edge | turn | even | worst | beside | on lines | area |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def row(case: Case, found: Sequence[Errors]) -> str:
    output = f"{case.geometry.out_height}x{case.geometry.out_width}"
    kinds = " | ".join(f"{pooled(found, kind):.2f} ({summed(found, kind):.2f})" for kind in found[0].bands)
    worst = max(found, key=lambda clip: clip.ratio(clip.worst))
    least, most = min(clip.psnr for clip in found), max(max(clip.bands.values()) for clip in found) ** 0.5
    return (
        f"| {case.tile} | {case.overlap} | {output} | {len(found)} | {least:.1f} | {kinds} | "
        f"{worst.ratio(worst.worst):.2f} ({worst.worst}) | {steepest(found):.2f} | {most:.2f} | {case.area:.2f} |\n"
    )


def by_clip(cases: Sequence[Case], found: Mapping[Case, Sequence[tuple[str, Errors]]]) -> Iterator[str]:
    """Each clip's PSNR and worst ratio, all its places together."""
    yield "| clip | " + " | ".join(f"{case.tile}, {case.overlap}" for case in cases) + " |\n"
    yield "| --- " * (len(cases) + 1) + "|\n"
    for name in dict.fromkeys(name for clips in found.values() for name, _ in clips):
        cells = []
        for case in cases:
            clips = [clip for other, clip in found[case] if other == name]
            worst = {kind: pooled(clips, kind) for kind in clips[0].bands} if clips else {"": 0.0}
            kind = max(worst, key=lambda kind: worst[kind])
            cells.append(f"{min(c.psnr for c in clips):.1f} dB, {worst[kind]:.2f} ({kind})" if clips else "")
        yield f"| {name} | " + " | ".join(cells) + " |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", nargs="*", type=Path, help="films and photographs beside those in assets")
    parser.add_argument("--places", type=int, default=1, help="pieces of each clip")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    chosen = parser.parse_args()
    found: dict[Case, list[tuple[str, Errors]]] = {case: [] for case in CASES}
    upscaler = Upscaler.load(embedded_weights(), PARAMS)
    for case, name, clip in measured(upscaler, list(footage(chosen.footage)), CASES, chosen.places, chosen.pictures):
        found[case].append((name, clip))
        print(case, name, f"{clip.psnr:.1f} dB", {kind: round(clip.ratio(kind), 2) for kind in clip.bands}, flush=True)
    by = f"Model `nano`, PyTorch {torch.__version__}, {platform.machine()} CPU, {chosen.places} places of each clip"
    table = HEAD.format(doc=__doc__, by=by) + "".join(
        row(case, [clip for _, clip in clips]) for case, clips in found.items() if clips
    )
    table += "\nThe least PSNR and the worst kind of line of each clip, all its places together:\n\n"
    table += "".join(by_clip(CASES, found))
    said = chosen.output.read_text().partition(FIGURES)[2] if chosen.output.exists() else "\n"
    chosen.output.write_text(f"{table}\n{FIGURES}{said}")


if __name__ == "__main__":
    main()
