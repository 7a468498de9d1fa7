"""The public surface of the core: load a model once, then turn iterators of frames into enlarged ones."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat

import numpy as np
import torch
from torch import Tensor

from flashvsr_core.color import CORRECTIONS
from flashvsr_core.config import UpscaleParams
from flashvsr_core.cuts import MarkedFrame, mark_cuts
from flashvsr_core.errors import UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.kernels.backends import kernels
from flashvsr_core.kernels.block_attention import attention_backend
from flashvsr_core.kernels.block_mask import local_window, top_k
from flashvsr_core.layout import Planes
from flashvsr_core.models.dit import Sparsity
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.noise import NoiseAhead
from flashvsr_core.pixels import Pack, crop, enlarge, pad, rgb_packer
from flashvsr_core.profiles import check_device, natural_attention, natural_precision
from flashvsr_core.registry import ModelSpec
from flashvsr_core.segments import FIRST_READ, GRID, STEP
from flashvsr_core.steady import Body, Recorder, Steady
from flashvsr_core.stream import LATENT_PIXELS, Network, StreamState, latents_of, open_stream, step
from flashvsr_core.transfer import Arriving, send, to_device
from flashvsr_core.weights import Weights, build_network

log = logging.getLogger(__name__)

# 78 dB against the uncut stream on formula weights, where 45 is asked (tests/bench/preroll.md); 8 frames more than the
# 24 that attention remembers by default, for models deeper than could be measured.
DEFAULT_PREROLL = 32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_params(params: UpscaleParams, spec: ModelSpec, device: torch.device) -> UpscaleParams:
    """Replace every `auto` by what this model and device type use, so that all workers of a job do the same."""
    precision, attention = params.precision, params.attention
    return replace(
        params,
        model=spec.name,  # type: ignore[arg-type]
        precision=natural_precision(params.profile, device) if precision == "auto" else precision,
        attention=natural_attention(params.profile, device) if attention == "auto" else attention,
        color_fix=spec.color_fix if params.color_fix == "auto" else params.color_fix,
        preroll=DEFAULT_PREROLL if params.preroll == "auto" else params.preroll,
    )


class Upscaler:
    """One loaded model on one device. It holds no stream: `stream` may be called for any number of videos."""

    def __init__(self, net: Network, spec: ModelSpec, params: UpscaleParams, device: torch.device) -> None:
        if not params.is_resolved:
            raise UserError(f"parameters still hold 'auto': {params}; resolve them with resolve_params() first")
        self.net = net
        self.spec = spec
        self.params = params
        self.device = device
        self.dtype = DTYPES[params.precision]
        self.recorder: Callable[[], Recorder] | None = None
        """Makes what steady steps are recorded with; None: every step is launched kernel by kernel."""
        self._steady: tuple[Geometry, Steady] | None = None

    @classmethod
    def load(cls, weights: Weights, params: UpscaleParams, device: torch.device | str = "cpu") -> "Upscaler":
        """Build the model's modules from `weights` on `device`; `auto` parameters are resolved."""
        device = torch.device(device)
        resolved = resolve_params(params, weights.spec, device)
        check_device(resolved, device)
        if resolved.precision == "fp32":
            # float32 was asked for; TF32 would keep 10 bits of mantissa.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        net = build_network(weights, DTYPES[resolved.precision], device, resolved.mode)
        if resolved.profile == "fast" and device.type == "cuda":
            from flashvsr_core.kernels.fp8_linear_triton import linear  # CPU installations have no Triton

            net.dit.quantise(linear)
        if isinstance(net.decode, TcDecoder) and device.type == "cuda" and resolved.precision != "fp32":
            net.decode.fuse(kernels(resolved.attention).repeat_pixels)
        return cls(net, weights.spec, resolved, device)

    def sparsity(self, geometry: Geometry) -> Sparsity:
        """How attention chooses and computes blocks at this size."""
        rows, columns = geometry.windows
        topk = top_k(rows * columns, self.params.sparse_ratio, geometry.padded_height, geometry.padded_width)
        local = local_window(rows, columns, self.params.local_range).to(self.device)
        return Sparsity(local, topk, attention_backend(self.params.attention), kernels(self.params.attention))

    def steady(self, geometry: Geometry, body: Body) -> Steady | None:
        """The recordings for this size: the last size's are kept from stream to stream."""
        if self.recorder is None:
            return None
        if self._steady is None or self._steady[0] != geometry:
            self._steady = None  # its memory goes first
            self._steady = geometry, Steady(body, self.recorder())
        return self._steady[1]

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Entered around each part of a step; a bench overrides it to measure."""
        return nullcontext()

    def stream(
        self,
        frames: Iterable[np.ndarray],
        *,
        first: int = 0,
        emit: tuple[int, int] | None = None,
        pack: Pack | None = None,
    ) -> Iterator[np.ndarray | Planes]:
        """Upscale consecutive frames of one video.

        frames: chunks T H W 3 (uint8 or uint16), the first of them frame number `first` of the video. Emitted are
        frames `emit` = [start, stop) of the video (default: all from `first` on, which must then lie on the grid of
        8), in chunks made by `pack` (default: T H W 3 in the depth of the input). Frames before `start` serve as
        context for scene cuts, and `params.preroll` of them are streamed and dropped. Reads no further than needed.
        """
        singles = (frame for chunk in frames for frame in chunk)
        opening = next(singles, None)
        if opening is None:
            raise UserError("there are no frames to upscale; at least 1 is needed")
        height, width = opening.shape[:2]
        run = _Run(self, Geometry(width, height, self.params.scale), pack or _same_depth(opening))
        start, stop = emit or (first, None)
        if start % GRID:
            raise UserError(f"frame {start} cannot start a segment; use a multiple of {GRID}")
        preroll = self.params.preroll if isinstance(self.params.preroll, int) else 0
        marked = mark_cuts(chain([opening], singles), first, self.params.scenes)
        for shot in _shots(_begin(marked, max(0, start - preroll), start)):
            yield from run.shot(shot, start, stop)
            if run.done(stop):
                return


class _Run:
    """One call of `Upscaler.stream`: geometry, sparsity and how far it has come."""

    def __init__(self, upscaler: Upscaler, geometry: Geometry, pack: Pack) -> None:
        self.net = upscaler.net
        self.params = upscaler.params
        self.device = upscaler.device
        self.dtype = upscaler.dtype
        self.geometry = geometry
        self.pack = pack
        self.emitted_to = 0
        self.sparsity = upscaler.sparsity(geometry)
        self.stage = upscaler.stage
        latent_size = (geometry.padded_height // LATENT_PIXELS, geometry.padded_width // LATENT_PIXELS)
        shape = (upscaler.spec.dit.in_dim, *latent_size)
        self.noise = NoiseAhead(self.params.seed, shape, self.device)
        body = partial(whole_step, self.net, self.sparsity, geometry, CORRECTIONS[self.params.color_fix], self.stage)
        self.steady = upscaler.steady(geometry, body)
        self.body = body if self.steady is None else self.steady.step

    def done(self, stop: int | None) -> bool:
        return stop is not None and self.emitted_to >= stop

    def shot(self, shot: Iterator[MarkedFrame], start: int, stop: int | None) -> Iterator[np.ndarray | Planes]:
        """Stream one scene from the grid point at or below its first frame; emit what lies in [start, stop)."""
        waiting: Arriving | None = None
        for emission in self._emissions(shot, start, stop):
            # A GPU works on this step while the frames of the one before are taken off it.
            if waiting is not None:
                yield waiting.take()
            waiting = emission
            if self.device.type != "cuda":
                yield waiting.take()
                waiting = None
        if waiting is not None:
            yield waiting.take()

    def _emissions(self, shot: Iterator[MarkedFrame], start: int, stop: int | None) -> Iterator[Arriving]:
        opening = next(shot)
        origin = opening.index // GRID * GRID
        lead = repeat(opening.pixels, opening.index - origin)
        pixels = chain(lead, [opening.pixels], (frame.pixels for frame in shot))
        start = max(start, opening.index)
        state = open_stream(self.net, self.params.kv_ratio, origin)
        if self.steady is not None:
            self.steady.begin(state)
        position, end, last = origin, origin, opening.pixels
        want = FIRST_READ
        while True:
            read = list(islice(pixels, want))
            end += len(read)
            last = read[-1] if read else last
            read += [last] * (want - len(read))
            frames, finite = self._step(state, read)
            # The input may end with a full read; the next one is then empty and known to be the end.
            low, high = max(start, position), min(end, position + len(frames), stop or end)
            if high > low:
                part = slice(low - position, high - position)
                with self.stage("send"):
                    sent = send(frames[part], finite[part], self.pack, low, self.params.precision)
                yield sent
            position += len(frames)
            self.emitted_to = min(position, end)
            if position >= end or self.done(stop):
                return
            want = STEP

    @torch.inference_mode()
    def _step(self, state: StreamState, frames: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """One step: returns the emitted frames T 3 H W float32 in [-1, 1], colour-corrected and cropped, and for each
        whether the model gave finite numbers. Nothing waits for the device."""
        with self.stage("fetch"):
            pixels = to_device(frames, self.device)
        with self.stage("noise"):
            count = latents_of(len(frames), first_step=state.waiting is None)
            noise = self.noise.take(state.next_latent, count, latents_of(STEP, first_step=False)).to(self.dtype)
        return self.body(state, pixels, noise)


def whole_step(
    net: Network,
    sparsity: Sparsity,
    geometry: Geometry,
    correct: Callable[[Tensor, Tensor], Tensor],
    stage: Callable[[str], AbstractContextManager[object]],
    state: StreamState,
    pixels: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """One step from pixels T H W 3 on the device to the emitted frames T 3 H W, as `_Run._step` returns them."""
    with stage("enlarge"):
        source = pad(enlarge(pixels, geometry), geometry).transpose(0, 1)[None]
    with stage("model"):
        condition, decoded = step(net, state, source, noise, sparsity)
    with stage("color"):
        out, reference = (crop(x[0].transpose(0, 1).float(), geometry) for x in (decoded, condition))
        return correct(out, reference), out.isfinite().flatten(1).all(dim=1)


def _same_depth(frame: np.ndarray) -> Pack:
    return rgb_packer(8 if frame.dtype == np.uint8 else 16)


def _begin(marked: Iterator[MarkedFrame], base: int, start: int) -> Iterator[MarkedFrame]:
    """Drop what came only as context for cuts, and what lies before the last cut up to `start`: it is never seen."""
    head: list[MarkedFrame] = []
    for frame in marked:
        if frame.index < base:
            continue
        head = [frame] if frame.cut else [*head, frame]
        if frame.index >= start:
            break
    return chain(head, marked)


def _shots(frames: Iterator[MarkedFrame]) -> Iterator[Iterator[MarkedFrame]]:
    """Group frames into scenes lazily; each scene must be consumed before the next."""
    opening = next(frames, None)

    def scene(first: MarkedFrame) -> Iterator[MarkedFrame]:
        nonlocal opening
        yield first
        for frame in frames:
            if frame.cut:
                opening = frame
                return
            yield frame
        opening = None

    while opening is not None:
        yield scene(opening)
