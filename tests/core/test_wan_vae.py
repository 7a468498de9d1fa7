"""The Wan 2.1 VAE decoder as a stream uses it; its numbers are in test_golden.py."""

import torch
from torch import Tensor

from flashvsr_core.models.wan_vae import WanVaeDecoder
from flashvsr_core.registry import VaeSpec
from tests.core.formula import draw, fill, relative_error


def decoder() -> WanVaeDecoder:
    vae = WanVaeDecoder(VaeSpec(dim=2))
    fill(vae, "vae.")
    return vae


def latents(name: str, count: int, batch: int = 1) -> Tensor:
    return draw(name, (batch, 16, count, 2, 3))


@torch.inference_mode()
def test_steps_emit_the_frames_that_a_stream_needs() -> None:
    vae = decoder()
    frames, memory = vae(latents("a", 6), latents("a", 6), None)
    assert frames.shape == (1, 3, 21, 16, 24)
    for step in range(3):
        frames, memory = vae(latents(f"b{step}", 2), latents("a", 2), memory)
        assert frames.shape == (1, 3, 8, 16, 24)


@torch.inference_mode()
def test_memory_does_not_grow() -> None:
    vae = decoder()
    _, memory = vae(latents("a", 1), latents("a", 1), None)
    shapes = [tensor.shape for tensor in memory]
    for step in range(4):
        _, memory = vae(latents(f"b{step}", 2), latents("a", 2), memory)
        assert [tensor.shape for tensor in memory] == shapes
    assert all(shape[1] == 2 for shape in shapes)


@torch.inference_mode()
def test_streams_side_by_side_do_not_meet() -> None:
    vae = decoder()
    alone = [vae(latents(name, 4), latents(name, 4), None)[0] for name in ("a", "b")]
    memories = {name: vae(latents(name, 4)[:, :, :2], latents(name, 2), None) for name in ("a", "b")}
    for name, whole in zip(("a", "b"), alone):
        first, memory = memories[name]
        second, _ = vae(latents(name, 4)[:, :, 2:], latents(name, 2), memory)
        assert torch.equal(torch.cat([first, second], dim=2), whole)


@torch.inference_mode()
def test_a_batch_is_its_items() -> None:
    vae = decoder()
    both = torch.cat([latents("a", 3), latents("b", 3)])
    frames, _ = vae(both, both, None)
    for item, name in zip(frames, ("a", "b")):
        alone, _ = vae(latents(name, 3), latents(name, 3), None)
        assert relative_error(item[None], alone) < 1e-4


@torch.inference_mode()
def test_low_precision_stays_low() -> None:
    vae = decoder().to(torch.bfloat16)
    x = latents("a", 2).to(torch.bfloat16)
    frames, memory = vae(x, x, None)
    assert frames.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in memory} == {torch.bfloat16}
