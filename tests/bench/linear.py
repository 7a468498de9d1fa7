"""What a linear filter could gain at best: python -m tests.bench.linear CLIP.npy ... [--reach 4] prints a table.

For each clip, the best filters of (2 reach + 1)^2 small pixels, one for each of the 16 pixels that one becomes, fitted
by least squares to that very clip, whose truth they know: no sharpening gains more over bicubic enlargement.
Clips and damage are those of `flashvsr_core.training.evaluate`, luma only.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flashvsr_core.training.degrade import DEGRADATIONS
from flashvsr_core.training.evaluate import bicubic, crop, damaged
from flashvsr_core.training.metrics import luma, psnr

SCALE = 4
_RIDGE = 1e-7  # share of the mean of the diagonal


def best_filter(small: Tensor, truth: Tensor, reach: int) -> Tensor:
    """small: T h w, truth: T 4h 4w, luma. Returns the enlargement T 4h 4w by the filter that fits this clip best."""
    taps = (2 * reach + 1) ** 2 + 1
    products = torch.zeros(taps, taps, dtype=torch.float64)
    answers = torch.zeros(taps, SCALE**2, dtype=torch.float64)
    for x, y in zip(_patches(small, reach), _cells(truth)):
        products += (x.T @ x).double()
        answers += (x.T @ y).double()
    products += _RIDGE * products.diagonal().mean() * torch.eye(taps, dtype=torch.float64)
    filters = torch.linalg.solve(products, answers).float()
    height, width = small.shape[1:]
    made = (F.pixel_shuffle((x @ filters).T.reshape(1, -1, height, width), SCALE)[0, 0] for x in _patches(small, reach))
    return 255 * (torch.stack(list(made)) + 0.5).clamp(0, 1)


def _patches(small: Tensor, reach: int) -> Iterator[Tensor]:
    """Of each frame: (h w) x (what lies around each pixel, and 1)."""
    for frame in small:
        padded = F.pad(_centred(frame)[None, None], (reach,) * 4, mode="replicate")
        x = F.unfold(padded, 2 * reach + 1)[0].T
        yield torch.cat([x, torch.ones(len(x), 1)], dim=1)


def _cells(truth: Tensor) -> Iterator[Tensor]:
    """Of each frame: (h w) x (the 16 pixels that each small one becomes)."""
    for frame in truth:
        yield F.pixel_unshuffle(_centred(frame)[None, None], SCALE)[0].flatten(1).T


def _centred(frame: Tensor) -> Tensor:
    return frame / 255 - 0.5


def rows(clips: list[Path], frames: int, reach: int) -> Iterator[str]:
    for clip in clips:
        truth = crop(np.load(clip, mmap_mode="r")[:frames], None)
        goal = luma(torch.from_numpy(truth))
        for degradation in DEGRADATIONS:
            small = damaged(truth, degradation, SCALE)
            base = psnr(luma(torch.from_numpy(bicubic(small, SCALE))), goal)
            best = psnr(best_filter(luma(torch.from_numpy(small)), goal, reach), goal)
            yield f"| {clip.stem} | {degradation} | {base:.2f} | {best:.2f} | {best - base:+.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=69)
    parser.add_argument("--reach", type=int, default=4, help="small pixels to each side; default 4: 9x9")
    chosen = parser.parse_args()
    print("| clip | input | bicubic | best filter | gain |\n| --- | --- | --- | --- | --- |")
    for row in rows(chosen.clips, chosen.frames, chosen.reach):
        print(row, flush=True)


if __name__ == "__main__":
    main()
