"""Named deliveries: what people usually want a result for, each a set of encoder choices that options can override."""

from dataclasses import dataclass
from typing import Literal

from tasks.media.codecs import Container

DeliveryName = Literal["none", "web", "archive", "edit"]


@dataclass(frozen=True)
class Delivery:
    """Choices that stand in for what was left open; `hdr_*` and `alpha_codec` for sources that need another codec."""

    about: str
    container: Container
    codec: str
    hdr_codec: str
    alpha_codec: str | None = None
    pix_fmt: str | None = None
    hdr_pix_fmt: str | None = None
    crf: dict[str, int] | None = None
    preset: str | None = None


DELIVERIES: dict[str, Delivery] = {
    "web": Delivery(
        "plays in browsers and on phones: H.264, 8 bits, 4:2:0 (H.265, 10 bits for HDR), MP4 with its index in front",
        "mp4", "h264", "h265", pix_fmt="yuv420p", hdr_pix_fmt="yuv420p10le", crf={"h264": 21, "h265": 23},
        preset="slow",
    ),
    "archive": Delivery(
        "lossless: FFV1 version 3 with checksums, 4:4:4, 10 bits, Matroska with every stream of the source",
        "mkv", "ffv1", "ffv1", pix_fmt="yuv444p10le", hdr_pix_fmt="yuv444p10le",
    ),
    "edit": Delivery(
        "for editing programs: ProRes 422 HQ in QuickTime (ProRes 4444 where the source is transparent)",
        "mov", "prores", "prores", alpha_codec="prores4444",
    ),
}  # fmt: skip
