"""The public surface of the core: load a model once, then turn iterators of frames into enlarged ones."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch

from flashvsr_core.config import Attention, UpscaleParams
from flashvsr_core.cuts import MarkedFrame, mark_cuts
from flashvsr_core.errors import UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.kernels.backends import REFERENCE, kernels
from flashvsr_core.kernels.block_attention import attention_backend
from flashvsr_core.kernels.block_mask import local_window, top_k
from flashvsr_core.kernels.last_layers import RoundedKernels
from flashvsr_core.layout import Planes
from flashvsr_core.models.attention import Sparsity
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.offload import Offloader
from flashvsr_core.pixels import Pack, rgb_packer
from flashvsr_core.profiles import check_device, natural_attention, natural_precision
from flashvsr_core.registry import ModelSpec
from flashvsr_core.relief import Placement
from flashvsr_core.run import Run
from flashvsr_core.segments import GRID
from flashvsr_core.steady import Body, CudaGraphs, Recorder, Steady
from flashvsr_core.stream import Network
from flashvsr_core.tiling import tiles_of
from flashvsr_core.weights import Weights, build_network

log = logging.getLogger(__name__)

# 78 dB against the uncut stream on formula weights, where 45 is asked (tests/bench/preroll.md); 8 frames more than the
# 24 that attention remembers by default, for models deeper than could be measured.
DEFAULT_PREROLL = 32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_params(params: UpscaleParams, spec: ModelSpec, device: torch.device) -> UpscaleParams:
    """Replace every `auto` by what this model and device type use, so that all workers of a job do the same."""
    precision, attention = params.precision, params.attention
    if precision == "auto":
        precision = natural_precision(params.profile, device)
    if attention == "auto":
        attention = natural_attention(params.profile, precision, spec.dit.head_dim, device)
    return replace(
        params,
        **_resolved_tiles(params),
        model=spec.name,  # type: ignore[arg-type]
        precision=precision,
        attention=attention,
        color_fix=spec.color_fix if params.color_fix == "auto" else params.color_fix,
        preroll=DEFAULT_PREROLL if params.preroll == "auto" else params.preroll,
    )


def _resolved_tiles(params: UpscaleParams) -> dict[str, Any]:
    """What `auto` means for tiles where nobody chose them by memory: none."""
    if params.tiled_dit != "on":
        return {"tiled_dit": "off", "tile_size": "auto", "tile_overlap": "auto"}
    size, overlap = tiles_of(params)
    return {"tile_size": str(size), "tile_overlap": overlap}


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
        self.offloader = Offloader(net.dit, device)
        self.placement = self._asked = Placement()
        self.recorder: Callable[[], Recorder] | None = None
        """Makes what steady steps are recorded with; None: every step is launched kernel by kernel."""
        self._steady: tuple[Geometry, Steady] | None = None

    def begin(self, placement: Placement) -> None:
        """`place`, unless that was done before: what was found to work since then stays."""
        if placement != self._asked:
            self.place(placement)

    def place(self, placement: Placement) -> None:
        """Begin streams from now on with this placement. It changes by itself where memory runs out."""
        if self._steady is not None:  # recorded steps read the weights where they were
            self._steady[1].stop("things are placed anew")
            self._steady = None
        self.offloader.set_level(placement.offload, placement.resident)
        self.placement = self._asked = placement

    @classmethod
    def load(cls, weights: Weights, params: UpscaleParams, device: torch.device | str = "cpu") -> "Upscaler":
        """Build the model's modules from `weights` on `device`; `auto` parameters are resolved."""
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:  # some functions of PyTorch want the number
            device = torch.device("cuda", torch.cuda.current_device())
        resolved = resolve_params(params, weights.spec, device)
        check_device(resolved, device)
        if resolved.precision == "fp32":
            # float32 was asked for; TF32 would keep 10 bits of mantissa.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        net = build_network(weights, DTYPES[resolved.precision], device, resolved.mode)
        if isinstance(net.decode, TcDecoder):
            net.decode.residual *= weights.spec.tcdecoder.shares[resolved.scale - 2]  # the less, the less is missing
        if resolved.profile == "fast" and device.type == "cuda":
            _quantise(net)
        found = cls(net, weights.spec, resolved, device)
        if device.type == "cuda" and resolved.precision != "fp32":
            if isinstance(net.decode, TcDecoder):
                fused = kernels(resolved.attention)
                if resolved.profile == "fast":
                    _fuse_fast(net.decode, resolved.attention)
                else:
                    net.decode.fuse_in_place(fused.repeat_pixels, fused.finish_frames)
            found.recorder = lambda: CudaGraphs(device)
        return found

    def rgb_pack(self, depth: Literal[8, 16]) -> Pack:
        """`rgb_packer` with this device's kernels."""
        return rgb_packer(depth, kernels(self.params.attention).quantise_rgb)

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
        on_fallback: Callable[[str], None] | None = None,
    ) -> Iterator[np.ndarray | Planes]:
        """Upscale consecutive frames of one video.

        frames: chunks T H W 3 (uint8 or uint16), the first of them frame number `first` of the video. Emitted are
        frames `emit` = [start, stop) of the video (default: all from `first` on, which must then lie on the grid of
        8), in chunks made by `pack` (default: T H W 3 in the depth of the input). Frames before `start` serve as
        context for scene cuts, and `params.preroll` of them are streamed and dropped. Reads no further than needed.

        Where the device runs out of memory, a step is made again with less on it at once; `on_fallback` is told how,
        in a sentence. OutOfMemory is raised where that does not suffice.
        """
        singles = (frame for chunk in frames for frame in chunk)
        opening = next(singles, None)
        if opening is None:
            raise UserError("there are no frames to upscale; at least 1 is needed")
        height, width = opening.shape[:2]
        geometry = Geometry(width, height, self.params.scale)
        run = Run(self, geometry, pack or self.rgb_pack(8 if opening.dtype == np.uint8 else 16), on_fallback)
        start, stop = emit or (first, None)
        if start % GRID:
            raise UserError(f"frame {start} cannot start a segment; use a multiple of {GRID}")
        preroll = self.params.preroll if isinstance(self.params.preroll, int) else 0
        marked = mark_cuts(chain([opening], singles), first, self.params.scenes)
        for shot in _shots(_begin(marked, max(0, start - preroll), start)):
            yield from run.shot(shot, start, stop)
            if run.done(stop):
                return


def _quantise(net: Network) -> None:
    """Layers in fp8 for profile fast on GPUs."""
    # CPU installations have no Triton.
    from flashvsr_core.kernels.fp8_linear import multiply
    from flashvsr_core.kernels.fp8_linear_triton import ROUNDING, linear
    from flashvsr_core.kernels.fp8_patches_triton import unfold

    net.dit.quantise(linear, ROUNDING)
    net.lq_proj.quantise(unfold, multiply)


def _fuse_fast(decoder: TcDecoder, attention: Attention) -> None:
    """The decoder of profile fast, by the kernels that go with an attention backend; with that for Hopper, in fp8."""
    if attention == REFERENCE.name:
        decoder.fuse_phases()
        return
    from flashvsr_core.kernels.last_layers_triton import TRITON, interleave_rounded

    if attention == "hopper":
        from flashvsr_core.kernels.hopper_convolution import convolve

        decoder.fuse_rounded(TRITON, RoundedKernels(interleave_rounded, convolve))
    else:
        decoder.fuse_phases(TRITON)


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
