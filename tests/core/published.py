"""The published files at a small size: exact formats and names, own digests, for every test of weights."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flashvsr_core.modelfiles import sha256_of
from flashvsr_core.models.dit import Dit
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.models.wan_vae import WanVaeDecoder
from flashvsr_core.registry import DitSpec, FileSpec, LqKind, LqSpec, ModelSpec, Registry, Role, TcDecoderSpec, VaeSpec
from tests.core.formula import draw, weight

DIT = "diffusion_pytorch_model_streaming_dmd.safetensors"
PROMPT = "examples/WanVSR/prompt_tensor/posi_prompt.pth"
KINDS: dict[str, LqKind] = {"v1.0": "buffer", "v1.1": "causal"}
REPOSITORIES = {"v1.0": "JunhaoZhuang/FlashVSR", "v1.1": "JunhaoZhuang/FlashVSR-v1.1"}
BOTH = ("v1.1", "v1.0")
_BASE = ModelSpec(
    "v1.1",
    DitSpec(dim=64, ffn_dim=64, num_heads=2, num_layers=1, freq_dim=16, text_dim=16),
    LqSpec("causal", (8, 12)),
    TcDecoderSpec((8, 8, 8, 8)),
    prompt_tokens=4,
    vae=VaeSpec(dim=2),
)
SMALL = {name: replace(_BASE, name=name, lq=replace(_BASE.lq, kind=kind)) for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Published:
    """Where the small files are, and the registry that knows them. `folders`: by version, in the published layout."""

    registry: Registry
    folders: dict[str, Path]
    prompt: Path
    comfy: Path
    """A ComfyUI models folder: FlashVSR/ with both DiTs under other names, conversions, one LQ projection."""

    def spec(self, role: Role, model: str) -> FileSpec:
        return self.registry.files_of(model, role)[0]

    def path(self, role: Role, model: str) -> Path:
        return self.prompt if role == "prompt" else self.folders[model] / self.spec(role, model).name


def publish(root: Path) -> Published:
    """Write everything below `root`."""
    folders = {model: root / repository.rpartition("/")[2] for model, repository in REPOSITORIES.items()}
    prompt = root / PROMPT
    comfy = root / "ComfyUI" / "models"
    for folder in (*folders.values(), prompt.parent, comfy / "FlashVSR"):
        folder.mkdir(parents=True)
    torch.save(draw("prompt", (1, 4, 16)).to(torch.bfloat16), prompt)
    decoder = _formula("tcdecoder.", TcDecoder(_BASE.tcdecoder))
    vae = _formula("vae.", WanVaeDecoder(VaeSpec(dim=2)))
    # The published file has the encoder too.
    vae |= {"encoder.conv1.weight": draw("encoder", (2, 3, 3, 3, 3)), "conv1.bias": draw("conv1", (32,))}
    files: list[FileSpec] = []
    for model, folder in folders.items():
        dit = _formula(f"{model}.dit.", Dit(_BASE.dit))
        lq = _formula(f"{model}.lq.", LqProj(_BASE.lq, _BASE.dit.dim))
        save_file(dit, folder / DIT)
        torch.save({key: value.to(torch.bfloat16) for key, value in lq.items()}, folder / "LQ_proj_in.ckpt")
        torch.save(decoder, folder / "TCDecoder.ckpt")
        torch.save(vae, folder / "Wan2.1_VAE.pth")
        save_file(
            dit,
            comfy
            / "FlashVSR"
            / {"v1.0": "Wan2_1-T2V-1_3B_FlashVSR_fp32.safetensors"}.get(model, "FlashVSR1_1.safetensors"),
        )
        files += [_spec("dit", folder / DIT, (model,)), _spec("lq_proj", folder / "LQ_proj_in.ckpt", (model,))]
    shared = folders["v1.1"]
    files += [_spec("tcdecoder", shared / "TCDecoder.ckpt", BOTH), _spec("vae", shared / "Wan2.1_VAE.pth", BOTH)]
    (comfy / "FlashVSR" / "LQ_proj_in.ckpt").write_bytes((shared / "LQ_proj_in.ckpt").read_bytes())
    (comfy / "FlashVSR" / "posi_prompt.pth").write_bytes(prompt.read_bytes())
    save_file(decoder, comfy / "FlashVSR" / "TCDecoder.safetensors")
    half = {key: value.half() for key, value in vae.items()}
    save_file(half, comfy / "FlashVSR" / "Wan2.1_VAE.safetensors")
    files += [
        replace(_spec("prompt", prompt, BOTH), path=PROMPT, repository="OpenImagingLab/FlashVSR", host="github"),
        replace(_spec("tcdecoder", comfy / "FlashVSR" / "TCDecoder.safetensors", BOTH), bytes=None),
        _spec("vae", comfy / "FlashVSR" / "Wan2.1_VAE.safetensors", BOTH),
    ]
    # As in the real registry, the size of one file is not known.
    files = [replace(f, bytes=None) if f.role == "lq_proj" and f.models == ("v1.0",) else f for f in files]
    return Published(Registry(SMALL, tuple(files)), folders, prompt, comfy)


def _formula(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    return {key: weight(prefix, key, tuple(value.shape)) for key, value in module.state_dict().items()}


def _spec(role: Role, path: Path, models: tuple[str, ...]) -> FileSpec:
    repository = REPOSITORIES[models[0]]
    return FileSpec(role, path.name, models, sha256_of(path), path.stat().st_size, repository)
