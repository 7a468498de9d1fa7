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
from safetensors.torch import load_file

from flashvsr_core import training
from flashvsr_core.config import UpscaleParams
from flashvsr_core.kernels.block_attention import attend_torch
from flashvsr_core.models.kv_ring import KvRing
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.registry import MODELS, DitSpec, LqSpec, ModelSpec, TcDecoderSpec
from flashvsr_core.training import data
from flashvsr_core.training.camera import draw_path, pyramid, render
from flashvsr_core.training.data import Bank, Mix
from flashvsr_core.training.degrade import DEGRADATIONS, random_degradation, soft_camera
from flashvsr_core.training.evaluate import CARD_CLIPS, bicubic, card, read_weights, upscale
from flashvsr_core.training.export import save_export, spec_of
from flashvsr_core.training.initial import LATENT_STD, draw_linear
from flashvsr_core.training.jpeg import jpeg
from flashvsr_core.training.metrics import psnr, ssim
from flashvsr_core.training.recipe import Recipe, load_recipe
from flashvsr_core.training.train import Trainer
from flashvsr_core.training.unroll import Model, TrainingRing, Window, masked_attention, unroll
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import embedded_path

CPU = torch.device("cpu")
SPEC = ModelSpec(
    "nano",
    DitSpec(dim=256, ffn_dim=32, num_heads=2, num_layers=1, freq_dim=16, text_dim=16, in_dim=8, out_dim=8),
    LqSpec("causal", (8, 12)),
    TcDecoderSpec(
        (8, 8, 8, 3),
        8,
        0.1,
        (1, 1, 1),
        shuffle=True,
        condition=False,
        detail=(4, 2),
        gate=True,
        leak=0.2,
        bare=True,
        clamp=250.0,
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
    bank, recipe = Bank(cache, CPU), replace(RECIPE, warmup=1)
    trainer = Trainer(recipe, SPEC, bank, CPU, total=1000)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.iterate()
    frozen = [key for key, value in trainer.model.state_dict().items() if torch.equal(value, before[key])]
    assert frozen == []  # every parameter learns, the prompt and both LQ convolutions included
    trainer.spent = 12.5
    trainer.save(tmp_path)
    same = Trainer(recipe, SPEC, bank, CPU, total=1000, fit=False)
    same.resume(tmp_path)  # on the machine of the call before: as if nothing had happened
    (tmp_path / "state.pt").unlink()
    again = Trainer(recipe, SPEC, bank, CPU, total=1000, fit=False)
    again.resume(tmp_path)
    assert (same.iteration, same.spent) == (again.iteration, again.spent) == (1, 12.5)
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(same.model.state_dict()[key], value), key
        assert torch.equal(same.average[key], trainer.average[key]), key
        assert torch.allclose(again.model.state_dict()[key], value, atol=2e-2, rtol=2e-3), key  # half precision
    moments = [t.optimizer.state_dict()["state"] for t in (trainer, same)]
    assert all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])
    assert same._rate() == trainer._rate() > again._rate()  # no moments: the rate rises again
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


def test_a_start_may_add_detail_and_a_gate_that_change_nothing_at_first(cache: Path, tmp_path: Path) -> None:
    bank, file = Bank(cache, CPU), tmp_path / "nano.safetensors"
    before = replace(SPEC, tcdecoder=replace(SPEC.tcdecoder, detail=(2,), gate=False))
    old = Trainer(RECIPE, before, bank, CPU, total=1000)
    save_export(file, old.model.state_dict(), before, {})
    old.start(file)  # the same half-precision values
    new = Trainer(replace(RECIPE, withheld=0.5), SPEC, bank, CPU, total=1000, fit=False)
    new.start(file)
    condition, _ = old._draw()
    outputs = []
    for trainer in (old, new):
        torch.manual_seed(0)
        outputs.append(unroll(trainer.model, condition, Window(3, 11, 1.0)))
    assert torch.allclose(*outputs, atol=1e-6)
    new.iterate()
    added = [key for key in new.model.state_dict() if key.startswith(("tcdecoder.detail.4", "tcdecoder.gate"))]
    assert len(added) == 4
    rates = []
    for spent in (0, 800, 875, 950):
        new.spent = spent
        rates.append(new._withheld())
    assert rates == pytest.approx([0.5, 0.5, 0.25, 0])
    for key, odd in {"tcdecoder.detail.8.bias": {"tcdecoder.detail.8.bias": torch.zeros(3)}, "prompt": None}.items():
        tensors = load_file(file)
        tensors = tensors | odd if odd else {name: value for name, value in tensors.items() if name != key}
        save_export(tmp_path / "odd.safetensors", tensors, before, {})
        with pytest.raises(ValueError, match=key):
            new.start(tmp_path / "odd.safetensors")


def test_latents_decoded_side_by_side_change_nothing() -> None:
    torch.manual_seed(0)
    decoder = TcDecoder(SPEC.tcdecoder)
    latents, condition = torch.randn(2, 8, 6, 4, 4), torch.rand(2, 3, 21, 32, 32)
    outputs = []
    with torch.no_grad():
        for decoder.latents_per_pass in (2, 6):
            first, memory = decoder(latents, condition, None)
            second, _ = decoder(latents[:, :, :2], condition[:, :, :8], memory)
            outputs.append(torch.cat([first, second], dim=2))
    assert torch.allclose(*outputs, atol=1e-5)


def test_the_gate_multiplies_what_is_added_to_the_condition() -> None:
    torch.manual_seed(0)
    decoder = TcDecoder(replace(SPEC.tcdecoder, detail=()))
    latents, condition = torch.randn(1, 8, 2, 4, 4), torch.zeros(1, 3, 8, 32, 32)
    added = []
    with torch.no_grad():
        decoder.decoder[-1].conv.bias.zero_()  # type: ignore[union-attr, operator]
        decoder.gate.weight.zero_()  # type: ignore[union-attr]
        for bias in (-100.0, 0.0, 100.0):
            decoder.gate.bias.fill_(bias)  # type: ignore[union-attr]
            added.append(decoder(latents, condition, None)[0])
    assert not added[0].any()
    assert torch.allclose(2 * added[1], added[2])
    assert added[1].any()


def test_the_card_has_a_row_for_each_clip_input_scale_and_colour() -> None:
    rows = list(card(Path("eval")))
    assert len(set(rows)) == len(rows) == 9 * 2 + 2 * 3 * 2 + 3 * 2
    assert {r.clip.stem for r in rows if r.ablate} == set(CARD_CLIPS)
    assert all(r.crop for r in card(Path("eval"), quick=True))


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


def test_a_soft_camera_takes_away_what_is_fine_and_leaves_the_rest() -> None:
    """Alike in all frames, whatever it draws: of single pixels little is left or much, waves 128 pixels long stay."""
    fine = torch.rand(1, 3, 64, 64).expand(3, -1, -1, -1)
    wide = (0.5 + 0.4 * torch.sin(torch.arange(256) * 2 * np.pi / 128)).expand(1, 3, 64, 256)
    left = []
    for seed in range(40):
        taken, kept = (soft_camera(clip, np.random.default_rng(seed)) for clip in (fine, wide))
        assert taken.shape == fine.shape
        assert torch.allclose(taken[0], taken[2], atol=1e-6)
        assert psnr(kept[..., 16:-16] * 255, wide[..., 16:-16] * 255) > 40
        left.append(float(taken.std() / fine.std()))
    assert 0.1 < min(left) < 0.2
    assert 0.75 < max(left) < 0.95


def test_a_share_of_the_truths_is_soft(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the model is given is made of that truth."""
    monkeypatch.setattr(data, "soft_camera", lambda truth, _: torch.zeros_like(truth))
    bank, clips = Bank(cache, CPU), 40
    for share, least, most in ((0.0, 0, 0), (0.5, 12, 28), (1.0, clips, clips)):
        condition, truth = bank.draw(np.random.default_rng(5), clips, 2, 128, Mix(0.0, share))
        soft = truth.amax(dim=(1, 2, 3, 4)) < -0.9
        assert least <= int(soft.sum()) <= most
        assert bool((condition.mean(dim=(1, 2, 3, 4))[soft] < -0.9).all())


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


def test_the_recipes_lead_to_the_embedded_model() -> None:
    """Each run begins with what the one before makes; the first lacks only layers that `start` may add."""
    folder = Path(training.__file__).parent
    first, longer, softer = (load_recipe(folder / f"{name}.json")[1] for name in ("first", "longer", "softer"))
    assert softer == longer == replace(MODELS["nano"], vae=None)
    assert first == replace(longer, tcdecoder=replace(longer.tcdecoder, detail=(2,), gate=False))
    assert spec_of(embedded_path()) == longer
