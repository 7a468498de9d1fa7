"""How far a result is from its reference: exact from float32, fast from exact, both on the same blocks."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashvsr_core.bench.inputs import input_size, random_clip
from flashvsr_core.bench.probe import Probe, recording, run
from flashvsr_core.config import UpscaleParams
from flashvsr_core.kernels.block_attention import BlockList
from flashvsr_core.kernels.block_mask import select_blocks
from flashvsr_core.models.attention import Sparsity
from flashvsr_core.segments import FIRST_READ, STEP
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights


@dataclass(frozen=True)
class Fidelity:
    """Distance from a reference under the same block masks, on random input; flipped blocks apart."""

    against: str  # the reference's precision and profile
    size: str  # of the output, HEIGHTxWIDTH
    psnr_db: float  # peak: range of the reference's result
    blocks: int
    flipped: int  # blocks that the reference would have chosen otherwise
    selections: int  # steps x layers; in each the number of blocks was compared with the reference's
    ties: int  # blocks more or less than the reference, by ties at a threshold


def float32(weights: Weights, params: UpscaleParams, device: torch.device) -> Upscaler:
    """The reference of profile exact: the same weights in float32 and plain PyTorch."""
    return Upscaler.load(weights, replace(params, profile="exact", precision="fp32", attention="torch"), device)


def exact(weights: Weights, params: UpscaleParams, device: torch.device) -> Upscaler:
    """The reference of profile fast."""
    return Upscaler.load(weights, replace(params, profile="exact", precision="auto", attention="auto"), device)


def fidelity(upscaler: Upscaler, reference: Upscaler, height: int, width: int, steps: int = 2) -> Fidelity:
    """Compare with `reference` (the same weights) on the blocks that `upscaler` chose.

    Raises FlashvsrError where, on the same scores, the reference selects another number of blocks in some layer;
    entries that tie with the threshold, of which rounding decides, may make a difference of one by head and slice.
    """
    plain = {"scenes": "off", "color_fix": "none"}
    frames = random_clip(FIRST_READ + STEP * (steps - 1), *input_size(upscaler.params, height, width))
    recorded: list[BlockList] = []
    uneven: list[int] = []
    params = replace(upscaler.params, **plain)  # type: ignore[arg-type]
    ours = _unclamped(Probe(upscaler, None, lambda s: recording(s, recorded, uneven), params), frames)
    flipped: list[int] = []
    replay = iter(recorded)

    def change(sparsity: Sparsity) -> Sparsity:
        def select(q: Tensor, k: Tensor, local: Tensor, topk: int) -> Tensor:
            mask, own = next(replay).mask(), select_blocks(q, k, local, topk)
            flipped.append(int((own & ~mask).sum()))
            return mask

        return replace(sparsity, kernels=replace(sparsity.kernels, select=select))

    params = replace(reference.params, **plain)  # type: ignore[arg-type]
    theirs = _unclamped(Probe(reference, None, change, params), frames)
    peak = float(theirs.max() - theirs.min())
    error = float((ours - theirs).square().mean())
    blocks = sum(int(found.counts.sum()) for found in recorded)
    psnr = 10 * math.log10(peak**2 / error) if error else math.inf
    against = f"{params.precision}, {params.profile}"
    size = f"{ours.shape[-2]}x{ours.shape[-1]}"
    return Fidelity(against, size, psnr, blocks, sum(flipped), len(recorded), sum(uneven))


def _unclamped(probe: Probe, frames: np.ndarray) -> Tensor:
    """Decoded frames of a stream before colour correction and quantisation, float32 on the host."""
    found: list[Tensor] = []
    decoder: Any = probe.net.decode
    hook = decoder.register_forward_hook(lambda _m, _i, out: found.append(out[0].float().cpu()))
    run(probe, frames)
    hook.remove()
    return torch.cat(found, dim=2)
