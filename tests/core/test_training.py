"""Training at a tiny size: data, degradations, gradients through the streaming state, checkpoints."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from flashvsr_core.config import UpscaleParams
from flashvsr_core.kernels.block_attention import attend_torch
from flashvsr_core.models.dit import KvRing
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.registry import DitSpec, LqSpec, ModelSpec, TcDecoderSpec
from flashvsr_core.training.camera import draw_path, pyramid, render
from flashvsr_core.training.data import Bank, Mix
from flashvsr_core.training.degrade import DEGRADATIONS, random_degradation
from flashvsr_core.training.evaluate import bicubic, read_weights, upscale
from flashvsr_core.training.initial import LATENT_STD, draw_linear
from flashvsr_core.training.jpeg import jpeg
from flashvsr_core.training.metrics import psnr, ssim
from flashvsr_core.training.recipe import Recipe, load_recipe
from flashvsr_core.training.train import Trainer
from flashvsr_core.training.unroll import Model, TrainingRing, Window, masked_attention, unroll
from flashvsr_core.upscaler import Upscaler

CPU = torch.device("cpu")
SPEC = ModelSpec(
    "nano",
    DitSpec(dim=256, ffn_dim=32, num_heads=2, num_layers=1, freq_dim=16, text_dim=16, in_dim=8, out_dim=8),
    LqSpec("causal", (8, 12)),
    TcDecoderSpec(
        (8, 8, 8, 3), 8, 0.1, (1, 1, 1), shuffle=True, condition=False, detail=(4, 2), leak=0.2, bare=True, clamp=250.0
    ),
    prompt_tokens=2,
)
RECIPE = Recipe(batch=1, first=1, frames=33, sizes=(128,), film=0.5, average=0.5, alone=0.0, mixed=0.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as scripts/prepare_training_data.py makes it, by formula."""
    root = tmp_path_factory.mktemp("cache")
    y, x, c = np.ogrid[:300, :400, :3]
    photo = ((np.sin(x * 0.3 + c) * np.cos(y * 0.2) + np.sin(x * y * 0.001)) * 60 + 128).clip(0, 255).astype(np.uint8)
    film = np.stack([np.roll(photo[:256, :256], t, axis=1) for t in range(40)])
    for name, array in {
        "photos/a": photo,
        "film/trailer": film,
        "film/crf20": film[:, ::4, ::4],
        "coded/000-a": film[:, :64, :64],
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        np.save(root / f"{name}.npy", array)
    index = {"photos": ["a"], "held_out": [], "shots": [[0, 40]], "film": ["crf20"], "coded": [["000-a", "a", 0]]}
    (root / "cache.json").write_text(json.dumps(index))
    return root


def test_training_makes_checkpoints_that_resume_and_a_model_that_upscales(cache: Path, tmp_path: Path) -> None:
    bank = Bank(cache, CPU)
    trainer = Trainer(RECIPE, SPEC, bank, CPU, total=1000)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.iterate()
    frozen = [key for key, value in trainer.model.state_dict().items() if torch.equal(value, before[key])]
    assert frozen == []  # every parameter learns, the prompt and both LQ convolutions included
    trainer.spent = 12.5
    trainer.save(tmp_path)
    again = Trainer(RECIPE, SPEC, bank, CPU, total=1000)
    again.resume(tmp_path)
    assert (again.iteration, again.spent) == (1, 12.5)
    for key, value in trainer.model.state_dict().items():
        assert torch.allclose(again.model.state_dict()[key], value, atol=2e-2, rtol=2e-3), key  # half precision
    again.iterate()
    upscaler = Upscaler.load(read_weights(tmp_path / "nano.safetensors"), UpscaleParams(preroll=0, color_fix="none"))
    out = upscale(upscaler, np.full((3, 16, 20, 3), 100, np.uint8))
    assert out.shape == (3, 64, 80, 3)


def test_a_run_may_start_from_an_exported_model(cache: Path, tmp_path: Path) -> None:
    bank = Bank(cache, CPU)
    first = Trainer(RECIPE, SPEC, bank, CPU, total=1000)
    first.iterate()
    first.save(tmp_path)
    second = Trainer(RECIPE, SPEC, bank, CPU, total=1000)
    second.start(tmp_path / "nano.safetensors")
    assert (second.iteration, second.spent) == (0, 0.0)
    exported = {key: value.half() for key, value in first.average.items()}
    for state in (second.model.state_dict(), second.average):
        assert all(torch.equal(state[key].half(), value) for key, value in exported.items())
    second.iterate()
    other = Trainer(RECIPE, replace(SPEC, prompt_tokens=3), bank, CPU, total=1000)
    with pytest.raises(ValueError, match="prompt_tokens=2"):
        other.start(tmp_path / "nano.safetensors")


def test_the_way_of_the_latents_is_open(cache: Path) -> None:
    """Attempts d and g of the model card: one closed activation, and the DiT never reached the output."""
    trainer = Trainer(replace(RECIPE, alone=1.0, mixed=1.0), SPEC, Bank(cache, CPU), CPU, total=1000)
    for _ in range(3):
        trainer.iterate()
        dead = [key for key, value in trainer.model.named_parameters() if "detail" not in key and not value.grad.any()]
        assert dead == []  # every layer from the input to the picture learns, with nothing but latents to learn from
    open_units = []
    for layer in trainer.model.tcdecoder.decoder:
        layer.register_forward_hook(lambda _, __, out: open_units.append(out.std(dim=(0, 2, 3)) > 1e-4))
    condition, _ = trainer._draw()
    unroll(trainer.model, condition, Window(3, 11, 1.0))
    assert all(bool(units.any()) for units in open_units)


def test_the_decoder_starts_as_the_linear_map_it_is_told() -> None:
    torch.manual_seed(0)
    decoder = TcDecoder(replace(SPEC.tcdecoder, channels=(8, 8, 24, 3)))
    meaning = F.interpolate(torch.randn(8, 3, 2, 4, 4), size=(4, 8, 8)).flatten(1)
    meaning[2:] = 0  # what 8 channels hold at 1/4
    with torch.no_grad():
        draw_linear(decoder, meaning)
        latents = LATENT_STD * torch.randn(1, 8, 2, 2, 2)
        out, _ = decoder(latents, torch.zeros(1, 3, 5, 16, 16), None)
    want = torch.einsum("bcfhw,cv->bfhwv", latents, meaning)
    want = rearrange(want, "b f h w (d t p q) -> b d (f t) (h p) (w q)", d=3, t=4, p=8, q=8)[:, :, 3:]
    assert torch.corrcoef(torch.stack([out.flatten(), want.flatten()]))[0, 1] > 0.9


def test_unrolling_is_the_stream_at_work(cache: Path) -> None:
    """Training sees what inference computes: the concatenating ring and the masked product change nothing."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 128, 8) for n in (4, 12, 12))
    blocks = torch.rand(2, 2, 4, 12) > 0.6
    blocks[0, 0, 1] = False
    assert torch.allclose(masked_attention(q, k, v, blocks), attend_torch(q, k, v, blocks), atol=1e-5)
    rings = KvRing(3), TrainingRing(3)
    for slices in (3, 1, 1, 1, 1):
        k, v = torch.randn(1, 2, slices * 2, 128, 8), torch.randn(1, 2, slices * 2, 128, 8)
        seen = [ring.push(k, v, 2)[0].clone() for ring in rings]
        order = [x.sum(dim=(0, 1, 3, 4)).sort().values for x in seen]
        assert torch.allclose(*order, atol=1e-3)


def test_gradients_reach_over_steps() -> None:
    model = Model(SPEC)
    condition = torch.rand(1, 3, 33, 128, 128).requires_grad_()
    out = unroll(model, condition, Window(3, 11, 1.0))
    assert out.shape == (1, 3, 29, 128, 128)
    out[:, :, -1].sum().backward()
    assert condition.grad is not None
    assert condition.grad[:, :, 4].abs().sum() > 0


@pytest.mark.parametrize("film", [0.0, 1.0])
def test_batches_are_clips_of_the_size_asked_for(cache: Path, film: float) -> None:
    bank = Bank(cache, CPU)
    rng = np.random.default_rng(3)
    for _ in range(6):
        condition, truth = bank.draw(rng, 2, 9, 256 if film else 128, Mix(film))
        assert condition.shape == truth.shape
        assert condition.shape[:3] == (2, 3, 9)
        assert -1 <= float(condition.min()) <= float(condition.max()) <= 1
        assert float((condition - truth).square().mean()) < 0.25  # the same picture


def test_a_camera_is_a_function_of_its_seed() -> None:
    levels = pyramid(torch.rand(3, 500, 700))
    clips = [render(levels, draw_path(np.random.default_rng(7), 5, (500, 700), 64), 64) for _ in range(2)]
    assert torch.equal(*clips)
    assert not torch.equal(clips[0][0], clips[0][4])


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_jpeg_loses_what_libjpeg_loses(quality: int) -> None:
    photo = Image.open(Path(__file__).parents[2] / "assets" / "seeding.jpg").resize((160, 120))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    original, theirs = (np.array(image, dtype=np.float64) for image in (photo, Image.open(file)))
    tensor = torch.from_numpy(original).permute(2, 0, 1)[None].float() / 255
    ours = (jpeg(tensor, quality)[0].permute(1, 2, 0) * 255).numpy()
    assert np.sqrt(np.square(ours - theirs).mean()) < 0.6 * np.sqrt(np.square(original - theirs).mean())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_degradations_reduce_and_damage(scale: int) -> None:
    clip = torch.rand(2, 3, 48, 48)
    rng = np.random.default_rng(0)
    for make in (*DEGRADATIONS.values(), lambda x, s: random_degradation(x, s, rng)):
        small = make(clip, scale)
        assert small.shape == (2, 3, 48 // scale, 48 // scale)
        assert torch.allclose(small * 255, (small * 255).round(), atol=1e-3)


def test_metrics() -> None:
    a = torch.rand(3, 32, 32) * 255
    assert psnr(a, a + 1) == pytest.approx(48.13, abs=0.01)
    assert ssim(a, a) == pytest.approx(1)
    assert bicubic(np.full((1, 4, 5, 3), 7, np.uint8), 4).shape == (1, 16, 20, 3)


def test_a_recipe_file_changes_recipe_and_spec(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"recipe": {"sizes": [128]}, "spec": {"lq": {"hidden": [8, 12]}}}))
    recipe, spec = load_recipe(path)
    assert recipe == replace(Recipe(), sizes=(128,))
    assert spec.lq.hidden == (8, 12)
