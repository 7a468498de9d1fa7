"""One stream: everything it carries between steps, and the one step that serves every model and mode."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from flashvsr_core.models.dit import Around, Dit, DitConstants, Sparsity, nothing_around
from flashvsr_core.models.kv_ring import KvRing
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.segments import LOOKAHEAD

FRAMES_PER_LATENT = 4
LATENT_PIXELS = 8  # output pixels of one latent pixel

Decode = Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]
"""(latents B C F h w, condition B 3 T H W, memory or None) -> (frames B 3 T H W, not clamped; memory)."""


@dataclass(frozen=True)
class Network:
    """The modules of one loaded model and what is computed from them once."""

    dit: Dit
    lq_proj: LqProj
    decode: Decode
    constants: DitConstants


@dataclass
class StreamState:
    """All that one stream carries: position, keys and values, LQ caches, decoder memory, frames not yet emitted."""

    rings: list[KvRing]
    next_latent: int  # absolute latent frame of the video that the next step starts with
    lq: tuple[Tensor, Tensor] | None = None
    decoder: Any = None
    waiting: Tensor | None = field(default=None, repr=False)  # B 3 4 H W: read, but not emitted yet
    position: Tensor | None = None  # `next_latent` on the device, while a step is recorded


def open_stream(net: Network, kv_ratio: float, first_frame: int) -> StreamState:
    """State of a stream whose first input is frame `first_frame` (a multiple of 8) of the video."""
    rings = [KvRing(int(kv_ratio)) for _ in net.dit.blocks]
    return StreamState(rings, first_frame // FRAMES_PER_LATENT)


def latents_of(frames: int, first_step: bool) -> int:
    """Latent frames of a step that reads `frames` frames (25 in a stream's first step, else 8)."""
    return (frames - 1) // FRAMES_PER_LATENT if first_step else frames // FRAMES_PER_LATENT


def step(net: Network, state: StreamState, frames: Tensor, noise: Tensor, sparsity: Sparsity) -> tuple[Tensor, Tensor]:
    """Advance one stream by one step.

    frames: B 3 T H W float32, enlarged and padded, in [-1, 1], T = 25 in the first step, else 8 (the modules convert
    to their own dtype). noise: B C F h w of the step's latent frames, in the modules' dtype. Returns the emitted
    input frames and their decoded counterparts (B 3 T' H W, not clamped; T' = 21, then 8).
    """
    condition = emitted_input(state, frames)
    latents = denoise(net, state, frames, noise, sparsity)
    decoded, state.decoder = net.decode(latents, condition, state.decoder)
    return condition, decoded


class Waiting(Protocol):
    """State of whatever emits frames later than it reads them."""

    waiting: Tensor | None


def emitted_input(state: Waiting, frames: Tensor) -> Tensor:
    """The input frames that this step emits: emission lags reading by 4 frames."""
    known = frames if state.waiting is None else torch.cat([state.waiting, frames], dim=2)
    state.waiting = known[:, :, -LOOKAHEAD:].clone()
    return known[:, :, :-LOOKAHEAD]


def denoise(
    net: Network, state: StreamState, frames: Tensor, noise: Tensor, sparsity: Sparsity, around: Around = nothing_around
) -> Tensor:
    """LQ projection and the one denoising step: latents B C F h w of this step."""
    tokens, state.lq = net.lq_proj(frames, state.lq)
    first = state.next_latent if state.position is None else state.position
    predicted = net.dit(noise, tokens, first, state.rings, net.constants, sparsity, around)
    state.next_latent += noise.shape[2]
    return noise - predicted
