"""The models this package knows: dimensions and variants as data, and the files that hold the published weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flashvsr_core.errors import UserError

LqKind = Literal["buffer", "causal"]
Role = Literal["dit", "lq_proj", "tcdecoder", "vae", "prompt"]

# The parts of a model that each mode reads.
PARTS: dict[str, tuple[Role, ...]] = {
    "tiny": ("dit", "lq_proj", "prompt", "tcdecoder"),
    "full": ("dit", "lq_proj", "prompt", "vae"),
}


@dataclass(frozen=True)
class DitSpec:
    """Dimensions of the diffusion transformer, named as in the published configuration."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    freq_dim: int = 256
    text_dim: int = 4096
    in_dim: int = 16
    out_dim: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class LqSpec:
    """LQ projection: pixels of 4 frames become one token slice, added before block 0.

    `buffer` (v1.0) gives each convolution the end of its own input as past, `causal` (v1.1) the previous clip's.
    """

    kind: LqKind
    hidden: tuple[int, int]
    layers: int = 1


@dataclass(frozen=True)
class TcDecoderSpec:
    """TCDecoder: channels of its four resolutions (1/8, 1/8 to 1/4, 1/4 to 1/2, 1/2 to 1). Defaults: as published.

    `residual` > 0 adds `residual` x the result to the condition instead of emitting the result itself. `shuffle`
    grows by pixel shuffle straight into the next resolution's channels; the last of them are then the 3 of a pixel.
    """

    channels: tuple[int, int, int, int]
    latent_channels: int = 16
    residual: float = 0.0
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of what is added to the condition, at scales 2, 3 and 4
    blocks: tuple[int, int, int] = (3, 3, 3)  # memory blocks at 1/8, 1/4 and 1/2
    shuffle: bool = False
    condition: bool = True  # whether the first convolution sees the condition beside the latents
    detail: tuple[int, ...] = ()  # 4: the condition's high frequencies are added at 1/4, 2: at 1/2 (with `shuffle`)
    gate: bool = False  # features at 1/2 are multiplied by factors in 0..2 that a 1x1 convolution sees in them
    leak: float = 0.0  # slope of the activations below 0
    bare: bool = False  # memory blocks add up without a last activation: nothing on the way of the latents can close
    clamp: float = 3.0  # latents are squashed smoothly to +- this


@dataclass(frozen=True)
class VaeSpec:
    """Wan 2.1 VAE decoder: channels at full resolution and of its latents."""

    dim: int
    z_dim: int = 16


@dataclass(frozen=True)
class ModelSpec:
    """One model: dimensions, variants and the defaults that were measured for it."""

    name: str
    dit: DitSpec
    lq: LqSpec
    tcdecoder: TcDecoderSpec
    prompt_tokens: int
    color_fix: Literal["adain", "wavelet", "none"] = "adain"
    vae: VaeSpec | None = None  # None: there is no mode `full`


_WAN_1_3B = DitSpec(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
_TC_FULL = TcDecoderSpec(channels=(512, 256, 128, 128))
_VAE = VaeSpec(dim=96)

MODELS: dict[str, ModelSpec] = {
    "v1.0": ModelSpec("v1.0", _WAN_1_3B, LqSpec("buffer", (2048, 3072)), _TC_FULL, prompt_tokens=512, vae=_VAE),
    "v1.1": ModelSpec("v1.1", _WAN_1_3B, LqSpec("causal", (2048, 3072)), _TC_FULL, prompt_tokens=512, vae=_VAE),
    "nano": ModelSpec(
        "nano",
        DitSpec(dim=256, ffn_dim=512, num_heads=2, num_layers=2, freq_dim=64, text_dim=64, in_dim=64, out_dim=64),
        LqSpec("causal", (72, 192)),
        TcDecoderSpec(
            channels=(64, 80, 32, 3),
            latent_channels=64,
            residual=0.1,
            shares=(0.4, 0.7, 0.8),  # flashvsr_core/assets/nano.md
            blocks=(1, 3, 2),
            shuffle=True,
            condition=False,
            detail=(4, 2),
            gate=True,
            leak=0.2,
            bare=True,
            clamp=250.0,
        ),
        prompt_tokens=8,
        color_fix="none",  # flashvsr_core/assets/nano.md
    ),
}


def model_spec(name: str) -> ModelSpec:
    """The spec of a model by name; an unknown name is a `UserError`."""
    if name not in MODELS:
        raise UserError(f"model {name!r} is not known; choose one of {', '.join(MODELS)}")
    return MODELS[name]


@dataclass(frozen=True)
class FileSpec:
    """One published file: the part of a model that it holds, where it is, and the sha256 by which alone it is known."""

    role: Role
    path: str  # in the repository
    models: tuple[str, ...]
    sha256: str
    bytes: int | None  # None: not known exactly
    repository: str
    revision: str = "main"
    host: Literal["huggingface", "github"] = "huggingface"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The folder below a models directory that `fetch` keeps it in; parts of several models are kept once."""
        return self.models[0] if len(self.models) == 1 else "shared"

    @property
    def url(self) -> str:
        if self.host == "github":
            return f"https://raw.githubusercontent.com/{self.repository}/{self.revision}/{self.path}"
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{self.path}"


@dataclass(frozen=True)
class Registry:
    """Models and the files that hold their weights. Of several files for one part, the first is the one to fetch."""

    models: Mapping[str, ModelSpec]
    files: tuple[FileSpec, ...]

    @property
    def names(self) -> list[str]:
        """Models with published weights, newest first."""
        return sorted({model for file in self.files for model in file.models}, reverse=True)

    def model(self, name: str) -> ModelSpec:
        if name not in self.names:
            raise UserError(f"model {name!r} has no published weights; choose one of {', '.join(self.names)}")
        return self.models[name]

    def files_of(self, model: str, role: Role) -> list[FileSpec]:
        return [file for file in self.files if file.role == role and model in file.models]

    def known(self, sha256: str) -> FileSpec | None:
        return next((file for file in self.files if file.sha256 == sha256), None)


_BOTH = ("v1.1", "v1.0")
_V11 = ("JunhaoZhuang/FlashVSR-v1.1", "27561b186ded3402d7c975f4fd722e2885b6135f")

# Digests: shared/facts/peers.md, section 4. Two conversions of 1038lab are left out on purpose: Prompt.safetensors,
# whose digest is not known, and LQ_proj_in.safetensors (b6b98d11...), of which it is not known which version it holds.
PUBLISHED = Registry(
    MODELS,
    (
        FileSpec("dit", "diffusion_pytorch_model_streaming_dmd.safetensors", ("v1.1",),
                 "bd28180edcf3446c028e32fc6b731a80bf7e4da2ab4caac3186b9499964d37be", 5_676_070_392, *_V11),
        FileSpec("lq_proj", "LQ_proj_in.ckpt", ("v1.1",),
                 "d6d011cdaaba6a52645086caa08fa04124e746f6ca568140a24007591142bfd2", 575_694_948, *_V11),
        FileSpec("dit", "diffusion_pytorch_model_streaming_dmd.safetensors", ("v1.0",),
                 "b05be65078a22000d8efdb6ce212133fd043255371c015329e9f3d31645c62c5", 5_676_070_392,
                 "JunhaoZhuang/FlashVSR"),
        FileSpec("lq_proj", "LQ_proj_in.ckpt", ("v1.0",),
                 "7ad76b2cc682d72e9521c5fa6bf15850c974c8aff9a04c92882b49c0517ffb94", None, "JunhaoZhuang/FlashVSR"),
        FileSpec("tcdecoder", "TCDecoder.ckpt", _BOTH,
                 "e224bdcf2f52745cbf4d393ff5374c2ba09e90285d5d19062d2bf63b915b6161", 189_018_333, *_V11),
        FileSpec("vae", "Wan2.1_VAE.pth", _BOTH,
                 "38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981", 507_609_880, *_V11),
        FileSpec("prompt", "examples/WanVSR/prompt_tensor/posi_prompt.pth", _BOTH,
                 "4601107a11e4e11a936a6b79df579e54dbc99872132bf542151f0ffd65b4b1ef", 4_195_504,
                 "OpenImagingLab/FlashVSR", host="github"),
        FileSpec("tcdecoder", "TCDecoder.safetensors", _BOTH,
                 "cefcf8672d0173c4c50e7fcff18c34b2a1bf76f9d85c95f6108055c8d30e76a6", None, "1038lab/FlashVSR"),
        FileSpec("vae", "Wan2.1_VAE.safetensors", _BOTH,
                 "2fc39d31359a4b0a64f55876d8ff7fa8d780956ae2cb13463b0223e15148976b", 253_815_318, "1038lab/FlashVSR"),
    ),
)  # fmt: skip
