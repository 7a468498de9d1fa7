"""What a run makes, known from names alone: one file, or images with a manifest that is written last."""

import re
from dataclasses import dataclass
from typing import cast, get_args

from flashvsr_core.errors import UserError
from tasks.media.codecs import Container
from tasks.media.delivery import DELIVERIES
from tasks.media.encode import EncodeParams
from tasks.media.images import DEFAULT_PATTERN, FRAME_NUMBER, frame_name, has_number, is_images
from tasks.media.sequence import is_image
from tasks.sources import is_images as is_image_source
from tasks.storage import urls

SPELLINGS = {"tif": "tiff"}
NOTHING_SAID: Container = "mp4"  # a container of this name may be the default: it overrules nothing
MANIFEST = ".manifest.json"
# A still stays a still; what we cannot write becomes PNG.
STILL_OUTPUT = {"tif": "tiff", "tiff": "tiff", "exr": "exr", "dpx": "dpx"}


@dataclass(frozen=True)
class Outputs:
    """`url` is the file whose being there says that all is there; `pattern` the images it speaks of (shot_%06d.png)."""

    url: str
    container: Container
    pattern: str | None = None

    def check_frames(self, frames: int) -> None:
        """UserError where the name is that of one image and there are more."""
        if is_images(self.container) and self.pattern is None and frames > 1:
            stem, _, suffix = self.url.rpartition(".")
            raise UserError(
                f"output {self.url} is one image and the source has {frames} frames; write {stem}_%06d.{suffix}, name "
                f"a folder (with --container {self.container}), or choose one frame with --start and --frames 1"
            )

    def image_url(self, number: int) -> str:
        """Where the image with this number goes."""
        assert self.pattern is not None
        return urls.join(urls.parent(self.pattern), frame_name(urls.name(self.pattern), number))


def container_wanted(encode: EncodeParams) -> Container:
    """The kind of output where its name does not say it: the one named, else that of the delivery."""
    delivery = DELIVERIES.get(encode.delivery)
    return delivery.container if delivery and encode.container == NOTHING_SAID else encode.container


def outputs_of(source: str, output: str | None, scale: int, container: Container) -> Outputs:
    """What `output` means: a video, an image, a pattern of images, a folder of them; None: beside the source.

    UserError where it is the source, or a name that says of no kind.
    """
    if output is None:
        output = _default(source, scale, container)
    output = urls.normalise(output)
    if output == urls.normalise(source):
        raise UserError(f"output {output} is the source itself; choose another OUTPUT")
    suffix = urls.name(output).rpartition(".")[2].lower()
    found = SPELLINGS.get(suffix, suffix)
    if found not in get_args(Container):
        if not is_images(container):
            kinds = ", ".join("." + kind for kind in get_args(Container))
            raise UserError(
                f"output {output} must end in {kinds}; a folder of images needs --container png, tiff, dpx or exr"
            )
        found, output = container, urls.join(output, f"{DEFAULT_PATTERN}.{container}")
    chosen = cast(Container, found)
    name = urls.name(output)
    if not is_images(chosen) or not FRAME_NUMBER.search(name):
        return Outputs(output, chosen)
    if not has_number(name):
        raise UserError(f"output {output} has more than one place for the frame's number; keep one %06d")
    stem = FRAME_NUMBER.sub("", name.rpartition(".")[0]).strip("_-. ") or "images"
    return Outputs(urls.join(urls.parent(output), f"{stem}{MANIFEST}"), chosen, output)


def _default(source: str, scale: int, container: Container) -> str:
    name = urls.name(source)
    if is_image_source(source):
        stem = re.sub(r"[*?\[\]]+", "", name.rpartition(".")[0] if is_image(name) else name).strip("_-. ") or "images"
        kind = container
    else:
        stem = name.rpartition(".")[0] or name
        kind = container
        if is_image(name) and container == NOTHING_SAID:
            kind = cast(Container, STILL_OUTPUT.get(name.rpartition(".")[2].lower(), "png"))
    stem = FRAME_NUMBER.sub(lambda match: match[0].replace("%", "_"), stem)  # of the source's name, and no pattern
    pattern = f"_{DEFAULT_PATTERN}" if is_images(kind) and not (is_image(name) and not is_image_source(source)) else ""
    return urls.join(urls.parent(source), urls.fitting(stem, f"_{scale}x{pattern}.{kind}"))
