"""Measure `nano` against bicubic enlargement: python -m flashvsr_core.training.evaluate CLIP.npy ...

A clip is a uint8 array T H W 3, the truth; it is reduced (and damaged) here. Figures are luma dB and levels of 255.
`--card /tmp/cache/eval` measures all that the model card shows, `--quick` the middle of its clips only.
"""

import argparse
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flashvsr_core.config import ColorFix, UpscaleParams
from flashvsr_core.geometry import Geometry
from flashvsr_core.pixels import enlarge
from flashvsr_core.stream import Network
from flashvsr_core.training.degrade import DEGRADATIONS
from flashvsr_core.training.metrics import difference_error, luma, psnr, ssim
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights, embedded_weights

log = logging.getLogger(__name__)

Scale = Literal[2, 3, 4]


@dataclass(frozen=True)
class Figures:
    """One clip, one degradation. `without_dit`: the loss in dB when latents are zero.

    `mean_latents`: the loss when each channel's latents are replaced by their mean over the step.
    """

    clip: str
    degradation: str
    scale: int
    color_fix: str
    bicubic: float
    nano: float
    gain: float
    bicubic_ssim: float
    nano_ssim: float
    bicubic_flicker: float
    nano_flicker: float
    without_dit: float | None = None
    mean_latents: float | None = None


def damaged(truth: np.ndarray, degradation: str, scale: int, device: torch.device | str = "cpu") -> np.ndarray:
    """What the model is given: truth T H W 3 uint8 -> T H/scale W/scale 3 uint8. Computed on `device`."""
    height, width = (n // scale * scale for n in truth.shape[1:3])
    parts = torch.from_numpy(np.ascontiguousarray(truth[:, :height, :width])).split(16)
    make = DEGRADATIONS[degradation]
    small = [
        make(part.to(device).permute(0, 3, 1, 2).float() / 255, scale, **_seed(degradation, i))
        for i, part in enumerate(parts)
    ]
    return (torch.cat(small) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _seed(degradation: str, part: int) -> dict[str, int]:
    return {"seed": part} if degradation == "mild" else {}


def bicubic(small: np.ndarray, scale: int) -> np.ndarray:
    """Cubic enlargement, a = -0.5, to uint8."""
    geometry = Geometry(small.shape[2], small.shape[1], scale)
    parts = (enlarge(part, geometry) for part in torch.from_numpy(small).split(16))
    frames = torch.cat([((part + 1) * 127.5).round().byte() for part in parts])
    return frames.permute(0, 2, 3, 1).contiguous().numpy()


def with_latents(upscaler: Upscaler, change: Callable[[Tensor], Tensor]) -> Upscaler:
    """The same model whose decoder is given changed latents."""
    net = upscaler.net
    decode = lambda latents, condition, memory: net.decode(change(latents), condition, memory)  # noqa: E731
    return Upscaler(
        Network(net.dit, net.lq_proj, decode, net.constants), upscaler.spec, upscaler.params, upscaler.device
    )


def upscale(upscaler: Upscaler, small: np.ndarray) -> np.ndarray:
    return np.concatenate(list(upscaler.stream(iter([small]))))


def measure(upscaler: Upscaler, name: str, truth: np.ndarray, degradation: str, ablate: bool = False) -> Figures:
    """All figures of one clip; `ablate` adds the two runs with spoilt latents."""
    scale, device = upscaler.params.scale, upscaler.device
    small = damaged(truth, degradation, scale, device)
    plain, nano = bicubic(small, scale), upscale(upscaler, small)
    on_device = lambda x: luma(torch.from_numpy(x).to(device))  # noqa: E731
    goal, base, result = (on_device(x) for x in (truth[:, : nano.shape[1], : nano.shape[2]], plain, nano))
    reached = psnr(result, goal)
    losses: list[float | None] = [None, None]
    if ablate:
        changes = (torch.zeros_like, lambda x: x.mean(dim=(2, 3, 4), keepdim=True).expand_as(x))
        runs = (upscale(with_latents(upscaler, change), small) for change in changes)
        losses = [reached - psnr(on_device(run), goal) for run in runs]
    return Figures(
        name, degradation, scale, upscaler.params.color_fix, psnr(base, goal), reached, reached - psnr(base, goal),
        ssim(base, goal), ssim(result, goal), difference_error(base, goal), difference_error(result, goal), *losses,
    )  # fmt: skip


HEADER = (
    "| clip | input | x | colour | bicubic | nano | gain | SSIM | frame-difference error | without DiT | mean latents |"
)


def row(f: Figures) -> str:
    lost = ["" if x is None else f"-{x:.2f}" for x in (f.without_dit, f.mean_latents)]
    change = (
        f"{f.bicubic_flicker:.3f} -> {f.nano_flicker:.3f} ({100 * (f.nano_flicker / f.bicubic_flicker - 1):+.0f} %)"
    )
    return (
        f"| {f.clip} | {f.degradation} | {f.scale} | {f.color_fix} | {f.bicubic:.2f} | {f.nano:.2f} | {f.gain:+.2f} "
        f"| {f.bicubic_ssim:.4f} -> {f.nano_ssim:.4f} | {change} | {lost[0]} | {lost[1]} |"
    )


@dataclass(frozen=True)
class Job:
    """One row to measure. `crop`: only the middle of the picture, at most so many pixels square."""

    clip: Path
    degradation: str
    ablate: bool = False
    scale: Scale = 4
    color_fix: ColorFix = "auto"
    frames: int = 69
    crop: int | None = None


CARD_CLIPS = ("water", "street", "animation", "seeding", "Kite", "Garden", "friends", "Path", "forest")
CARD_SCALED = ("water", "street", "Kite")
_SMALL_FRAMES, _SMALL_CROP = 33, 384


def card(folder: Path, quick: bool = False) -> Iterator[Job]:
    """All rows of the model card; `quick`: small parts of the clips, plain only at other scales, colour left out."""
    small = Job(folder, "plain", frames=_SMALL_FRAMES, crop=_SMALL_CROP)
    whole = small if quick else Job(folder, "plain")
    for name in CARD_CLIPS:
        yield replace(whole, clip=folder / f"{name}.npy")
        yield replace(whole, clip=folder / f"{name}.npy", degradation="mild", ablate=True)
    scales: tuple[Scale, ...] = (2, 3)
    for scale in scales:
        for name in CARD_SCALED:
            for degradation in DEGRADATIONS if not quick else ("plain",):
                yield replace(small, clip=folder / f"{name}.npy", scale=scale, degradation=degradation)
    colours: tuple[ColorFix, ...] = () if quick else ("none", "adain", "wavelet")
    for color_fix in colours:
        for degradation in DEGRADATIONS:
            yield replace(small, clip=folder / "street.npy", color_fix=color_fix, degradation=degradation)


def chosen(options: argparse.Namespace) -> list[Job]:
    """The rows that the command line asks for."""
    if options.card:
        return list(card(options.card, options.quick))
    job = Job(Path(), "", scale=options.scale, color_fix=options.color_fix, frames=options.frames, crop=options.crop)
    return [
        replace(job, clip=clip, degradation=degradation, ablate=options.ablate and degradation != "plain")
        for clip in options.clips
        for degradation in options.degradations
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--card", type=Path, help="instead of clips: the folder of the card's clips; measure all of it")
    parser.add_argument("--quick", action="store_true", help="with --card: small parts of its clips")
    parser.add_argument("--weights", type=Path, help="a file made by training; default: the embedded model")
    parser.add_argument("--frames", type=int, default=69)
    parser.add_argument("--crop", type=int, help="only the middle of the picture, at most so many pixels square")
    parser.add_argument("--scale", type=int, default=4, choices=(2, 3, 4))
    parser.add_argument("--degradations", nargs="+", default=list(DEGRADATIONS), choices=list(DEGRADATIONS))
    parser.add_argument("--color-fix", default="auto", choices=("auto", "adain", "wavelet", "none"))
    parser.add_argument("--ablate", action="store_true", help="also with latents zeroed and averaged")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if bool(options.clips) == bool(options.card):
        parser.error("give clips or --card, one of them")
    weights = read_weights(options.weights) if options.weights else embedded_weights()

    @cache
    def upscaler(scale: Scale, color_fix: ColorFix) -> Upscaler:
        # Figures are of whole clips in float32; on a GPU, TF32 is off (Upscaler.load).
        params = replace(common, scale=scale, color_fix=color_fix)
        return Upscaler.load(weights, params, options.device)

    common = UpscaleParams(model="nano", precision=options.precision, scenes="off", preroll=0)
    log.info("%s\n%s", HEADER, "| --- " * 11 + "|")
    figures = []
    for job in chosen(options):
        truth = crop(np.load(job.clip, mmap_mode="r")[: job.frames], job.crop)
        model = upscaler(job.scale, job.color_fix)
        figures.append(measure(model, job.clip.stem, truth, job.degradation, job.ablate))
        log.info(row(figures[-1]))
        if options.json:  # after each row: a call may end before the last
            options.json.write_text(json.dumps([asdict(f) for f in figures], indent=1))


def crop(clip: np.ndarray, side: int | None) -> np.ndarray:
    """The middle `side` x `side` pixels of T H W 3 (all, if None), multiples of 12 that every scale divides."""
    height, width = (min(n, side or n) // 12 * 12 for n in clip.shape[1:3])
    top, left = (clip.shape[1] - height) // 2, (clip.shape[2] - width) // 2
    return np.array(clip[:, top : top + height, left : left + width])  # a copy: PyTorch warns of read-only maps


def read_weights(path: Path) -> Weights:
    """Weights of an exported file; its spec is `MODELS['nano']` unless the metadata carry another."""
    from flashvsr_core.training.export import load_export

    return replace(embedded_weights(), **load_export(path))


if __name__ == "__main__":
    main()
