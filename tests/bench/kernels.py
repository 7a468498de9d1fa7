"""Pieces of a step on their own, on one GPU: tiles of the attention kernels, block selection, fp8 layers, last layers.

Every number is the median time of a call in milliseconds; `flashvsr_core.bench.speed.milliseconds`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvsr_core.bench.attention import Layer
from flashvsr_core.bench.speed import milliseconds
from flashvsr_core.config import UpscaleParams
from flashvsr_core.geometry import Geometry
from flashvsr_core.kernels import block_attention_triton, fp8_linear_triton, int8_attention_triton
from flashvsr_core.kernels import last_layers as kernels_of_last
from flashvsr_core.kernels.block_attention_triton import Tile
from flashvsr_core.kernels.fp8_linear import Fp8Linear, multiply
from flashvsr_core.kernels.int8_attention import common
from flashvsr_core.kernels.last_layers import LastLayers
from flashvsr_core.kernels.token_ops_triton import linear_gelu
from flashvsr_core.registry import DitSpec

TILES = [Tile(*t) for t in ((128, 8, 2), (128, 8, 1), (128, 8, 3), (64, 4, 2), (64, 4, 3), (64, 8, 2), (64, 8, 3))]


def layer_of(spec: DitSpec, height: int, width: int, device: torch.device) -> Layer:
    return Layer.of(spec, UpscaleParams(), Geometry(width // 4, height // 4, 4), device)


def timed(ways: Mapping[str, Callable[[], Any]], device: torch.device, tflop: float = 0.0) -> dict[str, Any]:
    """Milliseconds of each, and TFLOP/s where `tflop` says what a call computes; what fails says why."""
    found: dict[str, Any] = {}
    for name, function in ways.items():
        try:
            ms = milliseconds(function, device)
        except Exception as error:  # noqa: BLE001  a tile that does not fit is one row of the table
            found[name] = str(error).splitlines()[0][:120]
            continue
        found[name] = {"ms": ms, **({"tflops": tflop / ms * 1e3} if tflop else {})}
    return found


def attention_tiles(spec: DitSpec, device: torch.device, height: int = 768, width: int = 1408) -> dict[str, Any]:
    layer = layer_of(spec, height, width, device)
    blocks = layer.select()
    tflop = 4 * 128**2 * spec.head_dim * float(blocks.counts.sum()) / 1e12
    quantised = int8_attention_triton.quantise
    q8, k8 = quantised(layer.q, None, by_window=False), quantised(layer.k, common(layer.k), by_window=True)
    exact, rounded = block_attention_triton.launch, int8_attention_triton.attend_quantised
    ways: dict[str, Callable[[], Any]] = {
        _name("triton", t): partial(exact, layer.q, layer.k, layer.v, blocks, t) for t in TILES
    }
    ways |= {_name("int8", t): partial(rounded, q8, k8, layer.v, blocks, t) for t in TILES}
    passes: dict[str, Callable[[], Any]] = {
        "int8: mean of keys": partial(common, layer.k),
        "int8: quantise keys": partial(quantised, layer.k, common(layer.k), by_window=True),
        "int8: quantise queries": partial(quantised, layer.q, None, by_window=False),
    }
    return timed(ways, device, tflop) | timed(passes, device)


def _name(kernel: str, tile: Tile) -> str:
    return f"{kernel} {tile.keys} keys, {tile.warps} warps, {tile.stages} stages"


def selection(spec: DitSpec, device: torch.device, *sizes: tuple[int, int]) -> dict[str, Any]:
    """Scores, threshold and lists of one layer."""
    ways = {f"{height}x{width}": layer_of(spec, height, width, device).select for height, width in sizes}
    return timed(ways, device)


def layers(spec: DitSpec, device: torch.device, tokens: int = 8448) -> dict[str, Any]:
    """Each layer that profile fast has in fp8: bf16, the fp8 product alone, and with the pass that quantises."""
    found: dict[str, Any] = {}
    generator = torch.Generator(device).manual_seed(0)
    shapes = {"qkv": (3 * spec.dim, spec.dim, False), "widen": (spec.ffn_dim, spec.dim, False),
              "narrow": (spec.dim, spec.ffn_dim, True)}  # fmt: skip
    for name, (rows, columns, gelu) in shapes.items():
        x, weight, bias = (
            torch.randn(*shape, generator=generator, device=device).bfloat16()
            for shape in ((tokens, columns), (rows, columns), (rows,))
        )
        layer = Fp8Linear.of(weight, bias)
        plain = partial(linear_gelu if name == "widen" else F.linear, x, weight, bias)
        rounded, scales = fp8_linear_triton.quantise_rows(x, gelu)
        ways = {
            f"{name} bf16": plain,
            f"{name} fp8 alone": partial(multiply, rounded, scales, layer),
            f"{name} fp8": partial(fp8_linear_triton.linear, x, layer, gelu),
        }
        found |= timed(ways, device, 2 * tokens * rows * columns / 1e12)
    return found


def last_layers(device: torch.device, height: int = 768, width: int = 1408) -> dict[str, Any]:
    """The decoder's last layers for 4 frames, as profiles exact and fast compute them: growth, 128 to 128 channels, 128
    to 3 colours."""
    from flashvsr_core.kernels import hopper_convolution, last_layers_triton, pixels_triton

    generator = torch.Generator(device).manual_seed(0)

    def channels_last(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, device=device).bfloat16()
        return drawn.contiguous(memory_format=torch.channels_last)

    x, phases = channels_last(2, 128, height // 2, width // 2), channels_last(2, 1024, height // 2 + 1, width // 2 + 1)
    grow, middle, last = channels_last(1024, 128, 2, 2), channels_last(128, 128, 3, 3), channels_last(8, 128, 3, 3)
    pixels = channels_last(4, 128, height, width)
    one, less, bias = (torch.ones(n, device=device) for n in (1, 128, 3))
    layers, projection = LastLayers.of(middle, last[:3]), kernels_of_last.projection(last[:3])
    rounded = last_layers_triton.interleave_rounded(phases, 2, one, less)
    products = last_layers_triton.project(pixels, projection)
    out = x.new_empty(3, 4, height, width)
    convolve = partial(
        torch.cudnn_convolution_relu, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, bias=None
    )
    return timed(
        {
            "growth: convolution by phases": partial(convolve, x, grow),
            "growth: interleave": partial(pixels_triton.interleave, phases, 2),
            "growth: interleave and round": partial(last_layers_triton.interleave_rounded, phases, 2, one, less),
            "128 to 128: cuDNN": partial(convolve, pixels, middle),
            "128 to 128: fp8, with the last layer's products": partial(
                hopper_convolution.convolve, rounded, layers, less
            ),
            "last: 3 channels": partial(
                F.conv2d, pixels, last[:3].contiguous(memory_format=torch.channels_last), padding=1
            ),
            "last: 8 channels": partial(F.conv2d, pixels, last, padding=1),
            "last: products": partial(last_layers_triton.project, pixels, projection),
            "last: neighbours": partial(last_layers_triton.gather, products, one, bias, out),
        },
        device,
    )
