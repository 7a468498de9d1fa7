"""One stream: everything it carries between steps, and the one step that serves every model and mode."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flashvsr_core.models.attention import Sparsity
from flashvsr_core.models.dit import Around, Dit, DitConstants, nothing_around
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
    condition, state.waiting = emitted_input(state.waiting, frames)
    latents = denoise(net, state, project(net, state, frames), noise, sparsity)
    decoded, state.decoder = net.decode(latents, condition, state.decoder)
    return condition, decoded


def emitted_input(waiting: Tensor | None, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The input frames that a step emits, and those that wait for the next: emission lags reading by 4 frames."""
    known = frames if waiting is None else torch.cat([waiting, frames], dim=2)
    return known[:, :, :-LOOKAHEAD], known[:, :, -LOOKAHEAD:].clone()


def project(net: Network, state: StreamState, frames: Tensor) -> list[Tensor]:
    """LQ projection: the tokens of this step, in a list as `Dit.forward` wants it."""
    tokens, state.lq = net.lq_proj(frames, state.lq)
    return [tokens]


def denoise(
    net: Network,
    state: StreamState,
    tokens: list[Tensor],
    noise: Tensor,
    sparsity: Sparsity,
    around: Around = nothing_around,
    strips: int = 1,
) -> Tensor:
    """The one denoising step: latents B C F h w of this step. tokens: of `project`; strips: see `Dit.forward`."""
    first = state.next_latent if state.position is None else state.position
    predicted = net.dit(noise, tokens, first, state.rings, net.constants, sparsity, around, strips)
    state.next_latent += noise.shape[2]
    return noise - predicted
