"""What each codec takes: encoder, containers, pixel formats, quality scale, presets, and the arguments let through."""

import re
from dataclasses import dataclass, field
from typing import Literal

from flashvsr_core.errors import UserError

Codec = Literal["h264", "h265", "av1", "vp9", "prores", "prores4444", "ffv1"]
Encoder = Literal["software", "nvenc"]
Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
]
VideoPixFmt = Literal[
    "yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv422p12le",
    "yuv444p12le", "yuva420p", "yuva444p", "yuva420p10le", "yuva444p10le", "yuva444p12le",
]  # fmt: skip
ImagePixFmt = Literal[
    "rgb24", "rgb48be", "rgb48le", "rgba", "rgba64be", "rgba64le", "gbrp10be", "gbrpf32le", "gbrapf32le"
]
PixFmt = Literal[VideoPixFmt, ImagePixFmt]
ImageKind = Literal["png", "tiff", "dpx", "exr"]
Container = Literal["mp4", "mkv", "mov", "webm", ImageKind]

ARGUMENT = re.compile(r"(?P<key>[a-z0-9_-]+)=(?P<value>[A-Za-z0-9.,+-]+)")
MUXER = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm"}

_EIGHT = ("yuv420p", "yuv422p", "yuv444p")
_TEN = tuple(f"{name}10le" for name in _EIGHT)
_TWELVE = tuple(f"{name}12le" for name in _EIGHT)
_NAMES = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")


@dataclass(frozen=True)
class CodecSpec:
    """One encoder of libavcodec, as we use it."""

    encoder: str
    containers: tuple[str, ...]
    pix_fmts: tuple[str, ...]
    segment: Literal["mp4", "mov"] = "mp4"  # what segments of it are kept in (transparent VP9: see segment_format)
    crf: tuple[int, int] | None = None  # default, largest; None: the codec has no such scale
    crf_option: str = "crf"
    has_bitrate: bool = False
    presets: dict[str, dict[str, str]] = field(default_factory=dict)  # our name -> options of the encoder
    options: dict[str, str] = field(default_factory=dict)  # always given
    args: frozenset[str] = frozenset()  # codec arguments a user may give: none names a file or a thread count
    args_option: str | None = None  # the option that holds them, as key=value:key=value; None: each is one itself
    smallest: tuple[int, int] = (1, 1)  # width and height in pixels
    largest: int = 16384  # pixels a side


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_X26X = _words(
    """aq-mode aq-strength aud b-adapt b-bias bframes deblock ipratio keyint me merange min-keyint nr-inter nr-intra
    pbratio psy-rd qcomp qpmax qpmin qpstep rc-lookahead ref scenecut subme vbv-bufsize vbv-init vbv-maxrate weightb
    weightp"""
)
_X264 = _words(
    """8x8dct b-pyramid cabac chroma-qp-offset cqm dct-decimate direct fast-pskip level mbtree mixed-refs nr partitions
    trellis"""
)
_X265 = _words(
    """amp cbqpoffs crqpoffs ctu cutree early-skip hdr10-opt hevc-aq level-idc limit-modes limit-refs limit-sao limit-tu
    max-merge psy-rdoq rd rdoq-level rect rskip sao signhide strong-intra-smoothing tskip tu-inter-depth
    tu-intra-depth"""
)
_SVT = _words(
    """aq-mode enable-overlays enable-qm enable-tf enable-variance-boost fast-decode film-grain film-grain-denoise
    keyint lookahead qm-max qm-min scd sharpness tile-columns tile-rows tune variance-boost-strength variance-octile"""
)
_VPX = _words(
    """aq-mode arnr-maxframes arnr-strength arnr-type g lag-in-frames noise-sensitivity overshoot-pct sharpness
    static-thresh tile-columns tile-rows tune-content undershoot-pct"""
)
_NVENC = _words("aq-strength b_ref_mode bf g multipass rc-lookahead spatial-aq temporal-aq tune weighted_pred")

# The same names everywhere. SVT-AV1 counts from 13 (10 and above are for tools only) to 0, libvpx from 8 to 0, NVENC
# from p1 to p7; the fastest comes first.
_SVT_PRESETS = dict(zip(_NAMES, (9, 9, 9, 8, 8, 6, 5, 4, 2, 1)))
_VPX_SPEEDS = dict(zip(_NAMES, (8, 7, 6, 5, 4, 3, 2, 1, 0, 0)))
_NVENC_PRESETS = dict(zip(_NAMES, (1, 1, 2, 3, 3, 4, 5, 6, 7, 7)))

_BY_NAME = {name: {"preset": name} for name in _NAMES}

# Width and height in pixels. libx265 4.2 (PyAV 18.1) writes beyond its memory in narrow pictures, and the process dies
# of it sooner or later (malloc's checks find it at every width tried up to 48, and at none from 52 on).
_SMALLEST_H265 = (64, 16)

SOFTWARE: dict[str, CodecSpec] = {
    "h264": CodecSpec(
        "libx264", ("mp4", "mkv", "mov"), _EIGHT + _TEN, crf=(18, 51), has_bitrate=True, presets=_BY_NAME,
        args=_X26X | _X264, args_option="x264-params",
    ),
    "h265": CodecSpec(
        "libx265", ("mp4", "mkv", "mov"), _EIGHT + _TEN + _TWELVE, crf=(20, 51), has_bitrate=True, presets=_BY_NAME,
        args=_X26X | _X265, args_option="x265-params", smallest=_SMALLEST_H265,
    ),
    "av1": CodecSpec(
        "libsvtav1", ("mp4", "mkv", "webm"), ("yuv420p", "yuv420p10le"), crf=(28, 63), has_bitrate=True,
        presets={name: {"preset": str(number)} for name, number in _SVT_PRESETS.items()},
        args=_SVT, args_option="svtav1-params", smallest=(64, 64),
    ),
    "vp9": CodecSpec(
        "libvpx-vp9", ("webm", "mkv", "mp4"), (*_EIGHT, "yuva420p"), crf=(24, 63), has_bitrate=True,
        presets={name: {"deadline": "good", "cpu-used": str(speed)} for name, speed in _VPX_SPEEDS.items()},
        options={"row-mt": "0"}, args=_VPX,
    ),
    "prores": CodecSpec(
        "prores_ks", ("mov", "mkv"), ("yuv422p10le",), segment="mov", options={"profile": "hq", "vendor": "apl0"},
        args=frozenset({"bits_per_mb", "mbs_per_slice", "quant_mat"}),
    ),
    "prores4444": CodecSpec(
        "prores_ks", ("mov", "mkv"), ("yuv444p10le", "yuva444p10le"), segment="mov",
        options={"profile": "4444", "vendor": "apl0"}, args=frozenset({"bits_per_mb", "mbs_per_slice", "quant_mat"}),
    ),
    "ffv1": CodecSpec(
        "ffv1", ("mkv",), (*_EIGHT, *_TEN, *_TWELVE, "yuva420p", "yuva444p", "yuva420p10le", "yuva444p10le",
                           "yuva444p12le"),
        options={"level": "3", "slicecrc": "1", "g": "1"}, args=frozenset({"coder", "context", "slices"}),
    ),
}  # fmt: skip
NVENC: dict[str, CodecSpec] = {
    codec: CodecSpec(
        encoder, SOFTWARE[codec].containers, pix_fmts, crf=(crf, 51), crf_option="cq", has_bitrate=True,
        presets={name: {"preset": f"p{number}"} for name, number in _NVENC_PRESETS.items()},
        options={"forced-idr": "1", "strict_gop": "1"}, args=_NVENC, smallest=(160, 64), largest=side,
    )
    for codec, encoder, pix_fmts, crf, side in (
        ("h264", "h264_nvenc", ("yuv420p", "yuv444p"), 19, 4096),
        ("h265", "hevc_nvenc", ("yuv420p", "yuv444p", "yuv420p10le"), 21, 8192),
        ("av1", "av1_nvenc", ("yuv420p", "yuv420p10le"), 26, 8192),
    )
}  # fmt: skip


def spec_of(codec: str, encoder: str) -> CodecSpec | None:
    """How a codec is encoded; None where that kind of encoder does not make it."""
    return (SOFTWARE if encoder == "software" else NVENC).get(codec)


def segment_format(codec: str, pix_fmt: str) -> str:
    """Muxer of segments. Only Matroska's kind holds the second picture that is VP9's transparency."""
    return "webm" if codec == "vp9" and has_alpha(pix_fmt) else SOFTWARE[codec].segment


def subsampling_of(pix_fmt: str) -> Literal["420", "422", "444"]:
    names: tuple[Literal["420", "422", "444"], ...] = ("420", "422", "444")
    for name in names:
        if name in pix_fmt:
            return name
    raise ValueError(f"{pix_fmt} is no YUV format of ours")


def depth_of(pix_fmt: str) -> Literal[8, 10, 12]:
    """Bits of a YUV format of ours."""
    return 10 if pix_fmt.endswith("10le") else 12 if pix_fmt.endswith("12le") else 8


def has_alpha(pix_fmt: str) -> bool:
    return pix_fmt.startswith(("yuva", "rgba", "gbrap"))


def codecs_for(container: str) -> tuple[str, ...]:
    return tuple(codec for codec, spec in SOFTWARE.items() if container in spec.containers)


def codecs_with_alpha() -> tuple[str, ...]:
    return tuple(codec for codec, spec in SOFTWARE.items() if any(map(has_alpha, spec.pix_fmts)))


def parse_args(text: str) -> dict[str, str]:
    """`key=value:key=value` as a dict; raises UserError where it is written otherwise."""
    found: dict[str, str] = {}
    for part in text.split(":") if text else ():
        match = ARGUMENT.fullmatch(part)
        if match is None:
            raise UserError(f"codec argument {part!r} is not KEY=VALUE (values: letters, digits, . , + -)")
        found[match["key"]] = match["value"]
    return found
