"""Golden numbers of the published modules at a small size: every JSON + safetensors pair of FLASHVSR_GOLDEN."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from flashvsr_core import color
from flashvsr_core.kernels.block_attention import attention_backend
from flashvsr_core.kernels.block_mask import local_window, pool, select_blocks
from flashvsr_core.models.attention import Sparsity
from flashvsr_core.models.dit import Dit
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.models.wan_vae import WanVaeDecoder
from flashvsr_core.registry import DitSpec, LqSpec, TcDecoderSpec, VaeSpec
from flashvsr_core.stream import Network, denoise, emitted_input, open_stream, project
from tests.core.formula import draw, fill, relative_error, video

TOLERANCE = 5e-6
COLOR_TOLERANCE = 1e-5
VERSIONS = {"v1.0": "buffer", "v1.1": "causal"}

# Where the golden tests run: `FLASHVSR_DEVICE=cuda pytest -k golden`, with TF32 off.
DEVICE = torch.device(os.environ.get("FLASHVSR_DEVICE") or "cpu")
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False

GOLDEN = Path(os.environ.get("FLASHVSR_GOLDEN") or Path(__file__).parents[1] / "golden")
SETS = sorted(p for p in GOLDEN.glob("*.json") if p.with_suffix(".safetensors").exists())


@dataclass
class GoldenSet:
    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def size(self) -> tuple[int, int]:
        return self.meta["H"], self.meta["W"]

    @property
    def windows(self) -> tuple[int, int]:
        return self.meta["H"] // 128, self.meta["W"] // 128

    def sparsity(self) -> Sparsity:
        rows, columns = self.windows
        topk = int((rows * columns) ** 2 * self.meta["topk_ratio"]) - 1
        local = local_window(rows, columns, self.meta["local_range"]).to(DEVICE)
        return Sparsity(local, topk, attention_backend("torch"))


def test_golden_sets_exist() -> None:
    assert SETS, f"no golden set in {GOLDEN}"


@pytest.fixture(scope="module", params=SETS, ids=lambda p: p.stem)
def golden(request: pytest.FixtureRequest) -> GoldenSet:
    path: Path = request.param
    return GoldenSet(json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))


@pytest.fixture(scope="module", params=VERSIONS)
def run(request: pytest.FixtureRequest, golden: GoldenSet) -> dict[str, Any]:
    """One whole run of a version over the formula video: what each stage gave, chunk by chunk."""
    torch.manual_seed(0)
    version = request.param
    meta, salt = golden.meta, golden.meta["salt"]
    height, width = golden.size
    net = network(golden, VERSIONS[version])
    frames = video(meta["F"], height, width).to(DEVICE)
    noise = draw("noise", (1, 16, (meta["F"] - 1) // 4, height // 8, width // 8), salt).to(DEVICE)
    state = open_stream(net, meta["kv_ratio"], first_frame=0)
    result: dict[str, Any] = {"version": version, "net": net, "lq": [], "latents": [], "conditions": [], "frames": []}
    read = latent = 0
    with torch.inference_mode():
        while read < meta["F"]:
            count, latents = (25, 6) if read == 0 else (8, 2)
            chunk = frames[:, :, read : read + count]
            result["lq"].append(net.lq_proj(chunk, state.lq)[0])
            condition, state.waiting = emitted_input(state.waiting, chunk)
            part = noise[:, :, latent : latent + latents]
            result["latents"].append(denoise(net, state, project(net, state, chunk), part, golden.sparsity()))
            decoded, state.decoder = net.decode(result["latents"][-1], condition, state.decoder)
            result["conditions"].append(condition)
            result["frames"].append(decoded)
            read, latent = read + count, latent + latents
    return result


def network(golden: GoldenSet, kind: Any) -> Network:
    meta, salt = golden.meta, golden.meta["salt"]
    config = dict(meta["config"], patch_size=tuple(meta["config"]["patch_size"]))
    spec = DitSpec(**config)
    dit = Dit(spec)
    fill(dit, "dit.", salt)
    hidden = tuple(meta.get("lq_hidden", (64, 96)))
    lq = LqProj(LqSpec(kind, hidden), spec.dim)  # type: ignore[arg-type]
    fill(lq, "lq.", salt)
    keys = meta["tcdecoder_keys"]
    channels = tuple(keys[f"decoder.{i}.weight"][0] for i in (1, 10, 16, 22))
    decoder = TcDecoder(TcDecoderSpec(channels))  # type: ignore[arg-type]
    assert {k: list(v.shape) for k, v in decoder.state_dict().items()} == keys
    fill(decoder, "tcdecoder.", salt)
    for module in (dit, lq, decoder):
        module.to(DEVICE)
    with torch.inference_mode():
        constants = dit.constants(draw("context", (1, 32, spec.text_dim), salt).to(DEVICE))
    return Network(dit, lq, decoder, constants)


def test_golden_lq_projection(golden: GoldenSet, run: dict[str, Any]) -> None:
    for i, tokens in enumerate(run["lq"][:2]):  # a set holds those of the first two chunks
        expected = golden.tensors[f"{run['version']}.lq_proj.chunk{i}"]
        assert relative_error(tokens[:, ::7], expected) < TOLERANCE, f"chunk {i}"


def test_golden_latents(golden: GoldenSet, run: dict[str, Any]) -> None:
    for i, latents in enumerate(run["latents"]):
        assert relative_error(latents, golden.tensors[f"{run['version']}.latents.chunk{i}"]) < TOLERANCE, f"chunk {i}"


def test_golden_frames(golden: GoldenSet, run: dict[str, Any]) -> None:
    frames = torch.cat(run["frames"], dim=2)
    assert frames.shape[2] == golden.meta["frames_out"]
    assert relative_error(frames[..., ::8, ::8], golden.tensors[f"{run['version']}.frames"]) < TOLERANCE
    absmean = golden.meta[f"{run['version']}.frames_absmean"]
    assert abs(float(frames.abs().mean()) - absmean) < 1e-5 * absmean


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_golden_color(golden: GoldenSet, run: dict[str, Any], method: str) -> None:
    expected = golden.tensors[f"{run['version']}.frames_{method}"]
    count = expected.shape[2]
    frames = rearrange(torch.cat(run["frames"], dim=2)[0, :, :count], "c t h w -> t c h w")
    source = rearrange(torch.cat(run["conditions"], dim=2)[0, :, :count], "c t h w -> t c h w")
    corrected = rearrange(color.CORRECTIONS[method](frames, source), "t c h w -> 1 c t h w")
    assert relative_error(corrected[..., ::8, ::8], expected) < COLOR_TOLERANCE


def test_golden_chunked_decoding_equals_whole(run: dict[str, Any]) -> None:
    latents = torch.cat(run["latents"], dim=2)
    condition = torch.cat(run["conditions"], dim=2)
    with torch.inference_mode():
        whole, _ = run["net"].decode(latents, condition, None)
    assert torch.equal(whole, torch.cat(run["frames"], dim=2))


def test_golden_block_mask(golden: GoldenSet) -> None:
    salt = golden.meta["salt"]
    heads = golden.meta["config"]["num_heads"]
    n = golden.windows[0] * golden.windows[1]
    width = heads * 128
    q, k = (
        rearrange(draw(name, (count, 128, width), salt), "w t (h d) -> 1 h w t d", h=heads)
        for name, count in (("mask.q", n), ("mask.k", 4 * n))
    )
    sparsity = golden.sparsity()
    blocks = select_blocks(pool(q.to(DEVICE)), pool(k.to(DEVICE)), sparsity.local, sparsity.topk)
    assert torch.equal(blocks.cpu(), golden.tensors["mask.128"].bool())


def test_golden_local_window(golden: GoldenSet) -> None:
    rows, columns = golden.windows
    span = golden.meta["local_range"]
    assert torch.equal(local_window(rows, columns, span), golden.tensors["mask.local"].bool())
    assert torch.equal(local_window(6, 11, 11), golden.tensors["mask.local_6x11_r11"].bool())
    assert int(local_window(12, 20, 9).sum()) == golden.meta["mask.local_12x20_r9_sum"]


def wan_vae(golden: GoldenSet) -> WanVaeDecoder:
    vae = WanVaeDecoder(VaeSpec(golden.meta["vae"]["dim"], golden.meta["vae"]["z_dim"]))
    fill(vae, "vae.", golden.meta["salt"])
    return vae.to(DEVICE)


def test_golden_vae(golden: GoldenSet) -> None:
    latents, expected = golden.tensors["vae.latents"].to(DEVICE), golden.tensors["vae.frames"]
    with torch.inference_mode():
        frames, _ = wan_vae(golden)(latents, latents, None)
    assert frames.shape[2] == 4 * latents.shape[2] - 3 == expected.shape[2]
    assert relative_error(frames[..., ::2, ::2], expected) < TOLERANCE


def test_golden_vae_chunked_equals_whole(golden: GoldenSet) -> None:
    vae, latents = wan_vae(golden), golden.tensors["vae.latents"].to(DEVICE)
    with torch.inference_mode():
        whole, _ = vae(latents, latents, None)
        memory, parts = None, []
        for chunk in latents.tensor_split([latents.shape[2] // 2], dim=2):
            frames, memory = vae(chunk, chunk, memory)
            parts.append(frames)
    assert torch.equal(whole, torch.cat(parts, dim=2))
