"""The models this package knows: dimensions and variants as data."""

from dataclasses import dataclass
from typing import Literal

from flashvsr_core.errors import UserError

LqKind = Literal["buffer", "causal"]


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
    """TCDecoder: channels of its four resolutions (1/8, 1/8 to 1/4, 1/4 to 1/2, 1/2 to 1).

    `residual` > 0 adds `residual` x the result to the condition instead of emitting the result itself.
    """

    channels: tuple[int, int, int, int]
    latent_channels: int = 16
    residual: float = 0.0


@dataclass(frozen=True)
class ModelSpec:
    """One model: dimensions, variants and the defaults that were measured for it."""

    name: str
    dit: DitSpec
    lq: LqSpec
    tcdecoder: TcDecoderSpec
    prompt_tokens: int
    color_fix: Literal["adain", "wavelet", "none"] = "adain"


_WAN_1_3B = DitSpec(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
_TC_FULL = TcDecoderSpec(channels=(512, 256, 128, 128))

MODELS: dict[str, ModelSpec] = {
    "v1.0": ModelSpec("v1.0", _WAN_1_3B, LqSpec("buffer", (2048, 3072)), _TC_FULL, prompt_tokens=512),
    "v1.1": ModelSpec("v1.1", _WAN_1_3B, LqSpec("causal", (2048, 3072)), _TC_FULL, prompt_tokens=512),
    "nano": ModelSpec(
        "nano",
        DitSpec(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=64),
        LqSpec("causal", (36, 64)),
        TcDecoderSpec(channels=(64, 64, 32, 16), residual=1.0),
        prompt_tokens=8,
    ),
}


def model_spec(name: str) -> ModelSpec:
    """The spec of a model by name; an unknown name is a `UserError`."""
    if name not in MODELS:
        raise UserError(f"model {name!r} is not known; choose one of {', '.join(MODELS)}")
    return MODELS[name]
