"""How large a source may be, and what looking at it may cost: files come from strangers."""

from dataclasses import dataclass
from typing import Any, ClassVar

from flashvsr_core.config import FORM
from flashvsr_core.errors import BadInput, UserError

# Indexing reads the whole file: beyond a fixed time, so many bytes must pass per second, and so many images.
BYTES_PER_SECOND = 10_000_000
IMAGES_PER_SECOND = 20


@dataclass(frozen=True)
class Limits:
    """Bounds of a source; one beyond them is refused before work begins. They change no pixels."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORM

    max_megapixels: float = 64.0
    """Largest picture of a source, in millions of pixels."""
    max_frames: int = 5_000_000
    """Most frames of a source."""
    max_hours: float = 48.0
    """Longest duration of a source."""
    max_streams: int = 64
    """Most streams (video, sound, subtitles, attachments) of a source."""
    probe_seconds: float = 30.0
    """Time to look at a source; a second for every 10 MB comes on top, since indexing reads the whole file."""
    probe_memory_mb: int = 2000
    """Address space of the process that looks at a source, in MB."""

    def __post_init__(self) -> None:
        for name, least in (("max_megapixels", 0.000001), ("max_frames", 1), ("max_hours", 0.0001), ("max_streams", 1),
                            ("probe_seconds", 1), ("probe_memory_mb", 500)):  # fmt: skip
            if not getattr(self, name) >= least:
                raise UserError(f"{name} {getattr(self, name)} is too small; at least {least} is needed")

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1e6)

    def seconds_for(self, size: int, images: int = 0) -> float:
        """Time to look at a file of `size` bytes, or at so many images."""
        return self.probe_seconds + size / BYTES_PER_SECOND + images / IMAGES_PER_SECOND

    def check_size(self, name: str, width: int, height: int) -> None:
        """BadInput where a picture (pixels) is too large; `name` as messages show it."""
        if width * height > self.max_pixels:
            raise BadInput(
                f"{name} is {width}x{height}, {width * height / 1e6:.1f} megapixels; allowed are "
                f"{self.max_megapixels:g} (--max-megapixels)"
            )

    def check_frames(self, name: str, frames: int) -> None:
        if frames > self.max_frames:
            raise BadInput(f"{name} has more than {self.max_frames} frames, the most allowed (--max-frames)")

    def check_duration(self, name: str, seconds: float) -> None:
        if seconds > self.max_hours * 3600:
            raise BadInput(
                f"{name} lasts {seconds / 3600:.1f} hours; allowed are {self.max_hours:g} (--max-hours); if it does "
                "not, its times are damaged: copy it again"
            )

    def check_streams(self, name: str, streams: int) -> None:
        if streams > self.max_streams:
            raise BadInput(f"{name} has {streams} streams; allowed are {self.max_streams} (--max-streams)")


DEFAULT_LIMITS = Limits()
