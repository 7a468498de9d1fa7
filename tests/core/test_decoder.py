"""The decoder in its fused forms, on the CPU in plain PyTorch: the same numbers as layer by layer."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flashvsr_core.kernels.finish_frames import finish_frames
from flashvsr_core.models.fused_decoder import PhaseLayers, RoundedLayers
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.registry import TcDecoderSpec
from flashvsr_core.tiling import Tile
from tests.core import triton_here
from tests.core.formula import draw, fill, relative_error

STREAM = [6, 2, 2]  # latent frames of a stream's steps
SPEC = TcDecoderSpec((16, 32, 16, 8))


def decoder(spec: TcDecoderSpec = SPEC) -> TcDecoder:
    module = fill(TcDecoder(spec), "tcdecoder.")
    assert isinstance(module, TcDecoder)
    return module


def decoded(module: TcDecoder, calls: list[int]) -> Tensor:
    """One stream of calls with so many latent frames each; the first has a condition that is 3 frames shorter."""
    frames, memory, at = [], None, 0
    for call in calls:
        latents = draw("latents", (1, 16, sum(calls), 3, 5))[:, :, at : at + call]
        condition = draw("condition", (1, 3, 4 * sum(calls), 24, 40)).clamp(-1, 1)
        condition = condition[:, :, 4 * at + (0 if at else 3) : 4 * (at + call)]
        out, memory = module(latents, condition, memory)
        frames.append(out)
        at += call
    return torch.cat(frames, dim=2)


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("calls", [STREAM, [1], [2, 2, 1, 3]])
@torch.inference_mode()
def test_fused_forms_give_the_same_frames(calls: list[int], condition: bool) -> None:
    spec = replace(SPEC, condition=condition)
    plain, fused, in_place = (decoder(spec) for _ in range(3))
    fused.fuse()
    in_place.fuse_in_place()
    layered = decoded(plain, calls)  # first: of a process's very first convolutions, some are summed otherwise at times
    expected = decoded(fused, calls)
    assert expected.shape == (1, 3, 4 * sum(calls) - 3, 24, 40)
    assert relative_error(layered, expected) < 1e-5
    found = decoded(in_place, calls)
    if calls == STREAM:
        assert torch.equal(found, expected)
    assert relative_error(found, expected) < 1e-6  # of one time step and of two, a convolution may be summed otherwise


@pytest.mark.parametrize("calls", [STREAM, [1], [2, 2, 1, 3]])
@torch.inference_mode()
def test_phases_give_the_same_frames(calls: list[int]) -> None:
    plain, phases = decoder(), decoder()
    phases.fuse_phases()
    expected = decoded(plain, calls)
    assert relative_error(decoded(phases, calls), expected) < 1e-5


@pytest.mark.parametrize("calls", [STREAM, [1], [2, 2, 1, 3]])
@torch.inference_mode()
def test_a_layer_in_fp8_gives_about_the_same_frames(calls: list[int]) -> None:
    spec = replace(SPEC, channels=(16, 32, 16, 128))
    plain, rounded = decoder(spec), decoder(spec)
    rounded.fuse_rounded()
    assert isinstance(rounded.fused, RoundedLayers)
    expected = decoded(plain, calls)
    assert 1e-4 < relative_error(decoded(rounded, calls), expected) < 0.02
    narrow = decoder()
    narrow.fuse_rounded()
    assert type(narrow.fused) is PhaseLayers


@pytest.mark.parametrize("rounded", [False, True])
@torch.inference_mode()
def test_memory_in_place_can_be_cut(rounded: bool) -> None:
    """A stream that goes on with a part of the picture, where memory ran out, and as much around it as is looked at.
    What is rounded is rounded alike."""
    module = decoder(replace(SPEC, channels=(16, 32, 16, 128)))
    if rounded:
        module.fuse_rounded()
    else:
        module.fuse_in_place()
    seen = module.reach + 32  # columns that are right, of twice as many
    whole = Tile(0, 0, 16, 2 * seen)
    part = Tile(0, 0, 16, seen + module.reach)
    latents, condition = torch.randn(1, 16, 4, 2, 2 * seen // 8), torch.rand(1, 3, 13, 16, 2 * seen) * 2 - 1
    _, memory = module(latents[:, :, :2], condition[:, :, :5], None)
    cut = [part.crop(tensor, whole.width // tensor.shape[-1]).clone() for tensor in memory]
    expected, _ = module(latents[:, :, 2:], condition[:, :, 5:], memory)
    found, _ = module.back(part.crop(latents[:, :, 2:], 8), part.crop(condition[:, :, 5:]), cut)
    # Of what is summed otherwise by a bit, one number in many thousands is rounded to another of fp8.
    assert relative_error(found[..., :seen], expected[..., :seen]) < (5e-4 if rounded else 1e-5)


@torch.inference_mode()
def test_a_decoder_that_adds_to_its_condition_stays_as_it_is() -> None:
    module = decoder(replace(SPEC, residual=0.5))
    module.fuse_in_place()
    module.fuse_phases()
    module.fuse_rounded()
    assert module.fused is None


@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 1, 1), (2, 7, 301), (3, 32, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_frames_are_finished_in_their_place(
    channels: int, frames: int, height: int, width: int, dtype: torch.dtype
) -> None:
    x = draw("finish", (frames, channels, height, width)).to(triton_here.DEVICE, dtype)
    for finish in (finish_frames, triton_here.module("pixels_triton").finish_frames):
        whole = torch.full((1, 3, frames + 2, height, width), torch.nan, dtype=dtype, device=x.device)
        finish(x, whole[0, :, 1:-1])
        assert torch.equal(whole[0, :, 1:-1], (x[:, :3] * 2 - 1).transpose(0, 1))
        assert whole[:, :, [0, -1]].isnan().all()


@pytest.mark.gpu
@torch.inference_mode()
def test_cudnn_gives_the_same_bits_in_place() -> None:
    spec = TcDecoderSpec((64, 32, 16, 16))
    fused, in_place, phases = (decoder(spec).to("cuda", torch.bfloat16) for _ in range(3))
    kernels = triton_here.module("pixels_triton")
    phases.fuse_phases(triton_here.module("last_layers_triton").TRITON)
    fused.fuse(kernels.repeat_pixels)
    in_place.fuse_in_place(kernels.repeat_pixels, kernels.finish_frames)
    latents = draw("latents", (1, 16, 6, 16, 24)).to("cuda", torch.bfloat16)
    condition = draw("condition", (1, 3, 21, 128, 192)).clamp(-1, 1).cuda()
    expected, memory = fused(latents, condition, None)
    found, other = in_place(latents, condition, None)
    assert relative_error(found, expected) < 1e-3
    assert relative_error(phases(latents, condition, None)[0], expected) < 0.02
    later = torch.cat([condition, condition], dim=2)[:, :, :8]
    assert (
        relative_error(in_place(latents[:, :, :2], later, other)[0], fused(latents[:, :, :2], later, memory)[0]) < 1e-3
    )
