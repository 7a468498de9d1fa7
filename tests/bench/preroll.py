"""How much pre-roll a segment needs: python -m tests.bench.preroll [formula|nano ...] writes tests/bench/preroll.md.

A stream is cut into segments and compared with one uncut stream, over the 16 frames after each cut. Weights by formula
make a model whose every layer and memory matters; `nano` is the embedded model. With --film CLIP.npy ... (clips of the
training cache) it prints the rows of tests/bench/nano.md instead: damaged film, and the first frame after a cut alone.
"""

import argparse
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flashvsr_core.config import UpscaleParams
from flashvsr_core.training.evaluate import crop, damaged
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights, embedded_weights
from tests.core.formula import formula_weights, moving_clip

PREROLLS = (0, 8, 16, 24, 32, 48)
CUTS = (64, 96)
AFTER = 16  # frames compared after each cut
FRAMES = CUTS[-1] + AFTER
PARAMS = UpscaleParams(scenes="off", color_fix="none")
FILM_CUTS, FILM_SIDE = (56, 64), 512


def curve(
    weights: Weights, frames: np.ndarray, cuts: Sequence[int] = CUTS, prerolls: Sequence[int] = PREROLLS
) -> dict[int, list[float]]:
    """PSNR in dB (8 bits, all frames after a cut together) per pre-roll, one value per cut."""
    params = replace(PARAMS, preroll=0)
    whole = _whole(Upscaler.load(weights, params), frames)
    found: dict[int, list[float]] = {}
    for preroll in prerolls:
        upscaler = Upscaler.load(weights, replace(params, preroll=preroll))
        found[preroll] = [_psnr(_segment(upscaler, frames, cut), whole[cut : cut + AFTER]) for cut in cuts]
    return found


def _whole(upscaler: Upscaler, frames: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(chunk) for chunk in upscaler.stream(iter([frames]))])


def _segment(upscaler: Upscaler, frames: np.ndarray, cut: int, after: int = AFTER) -> np.ndarray:
    first = max(0, cut - int(upscaler.params.preroll))
    chunks = upscaler.stream(iter([frames[first:]]), first=first, emit=(cut, cut + after))
    return np.concatenate([np.asarray(chunk) for chunk in chunks])


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.square(one.astype(np.float64) - other).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _rows(name: str, weights: Weights) -> Iterator[str]:
    for preroll, values in curve(weights, moving_clip(FRAMES, 64, 96)).items():
        yield f"| {name} | {preroll} | " + " | ".join(f"{value:.1f}" for value in values) + " |"


def film_rows(clip: Path) -> Iterator[str]:
    """The middle of a clip, mildly damaged: PSNR of the first frame after a cut, the lowest of all cuts."""
    truth = crop(np.load(clip, mmap_mode="r")[: FILM_CUTS[-1] + 8], FILM_SIDE)
    small, params = damaged(truth, "mild", 4), replace(PARAMS, preroll=0)
    whole = _whole(Upscaler.load(embedded_weights(), params), small)
    for preroll in PREROLLS:
        upscaler = Upscaler.load(embedded_weights(), replace(params, preroll=preroll))
        first = [_psnr(_segment(upscaler, small, cut, after=1), whole[cut : cut + 1]) for cut in FILM_CUTS]
        yield f"| {clip.stem} | {preroll} | {min(first):.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["formula", "nano"])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--film", nargs="+", type=Path, default=[])
    chosen = parser.parse_args()
    for clip in chosen.film:
        for row in film_rows(clip):
            print(row, flush=True)
    if chosen.film:
        return
    makers = {"formula": formula_weights, "nano": embedded_weights}
    rows = [row for name in chosen.models for row in _rows(name, makers[name]())]
    head = [
        "# Pre-roll",
        "",
        "PSNR (dB, 8 bits) of a stream cut into segments against one uncut stream, over the 16 frames after each cut.",
        f"Moving pattern, 96x64 enlarged 4 times, fp32. PyTorch {torch.__version__}, {platform.machine()} CPU.",
        "Command: `python -m tests.bench.preroll`",
        "",
        "| weights | pre-roll (frames) | " + " | ".join(f"cut at {cut}" for cut in CUTS) + " |",
        "| --- | --- |" + " --- |" * len(CUTS),
    ]
    chosen.output.write_text("\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    main()
