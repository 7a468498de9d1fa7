"""Finished segments become images: each published whole, and a manifest that names them all published last."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flashvsr_core.errors import FlashvsrError
from flashvsr_core.segments import SegmentPlan
from tasks.events import StageEntered, tell
from tasks.media.encode import check_segment
from tasks.media.images import check_image, frame_name, images_in
from tasks.media.trim import frame_time
from tasks.outputs import Outputs
from tasks.plan import JobPlan
from tasks.report import OutputFile, announce_output
from tasks.storage import urls
from tasks.storage.jobs import Job
from tasks.verify import Depth

MANIFEST = 1  # version of the manifest
WORK_PATTERN = "%d"


@task(name="unpack", task_run_name="unpack", cache_policy=NO_CACHE)
def unpack_images(job: Job, plan: JobPlan, folder: Path, depth: Depth) -> tuple[Path, ...]:
    """The images of all segments as files in `folder`, in order; the first and last of each segment are decoded.

    Raises `DamagedSegment` as `assemble` does. `depth` full decodes every image.
    """
    tell(StageEntered("merge"), f"unpacking {len(plan.segments)} segments")
    return unpacked(((job.fetch_segment(s.index, folder), s) for s in plan.segments), plan, folder, depth)


def unpacked(
    segments: Iterable[tuple[Path, SegmentPlan]], plan: JobPlan, folder: Path, depth: Depth
) -> tuple[Path, ...]:
    """The images of some segments (file, plan), as `unpack_images` writes and checks them."""
    geometry = plan.geometry
    files: list[Path] = []
    for path, segment in segments:
        if depth == "full":
            check_segment(path, segment.frames, geometry.out_width, geometry.out_height)
        made = [_write(folder, data, len(files) + i, plan) for i, data in enumerate(images_in(path))]
        if len(made) != segment.frames:
            raise FlashvsrError(f"segment {segment.index} holds {len(made)} images, expected {segment.frames}")
        for file in {made[0], made[-1]}:
            check_image(file, geometry.out_width, geometry.out_height)
        files += made
    return tuple(files)


def whole_of(files: tuple[Path, ...]) -> Path:
    """What names all of `files`: the only one, or the pattern of the images that `unpack_images` wrote."""
    return files[0] if len(files) == 1 else files[0].with_name(f"*{files[0].suffix}")


def publish_images(
    job: Job, plan: JobPlan, files: tuple[Path, ...], outputs: Outputs, first: int = 0, announce: bool = True
) -> OutputFile:
    """Publish images and, when all are there, the manifest; `files` are consumed.

    They are frames of the job's video from number `first` on. `announce`: a later run shall know them as its own.
    """
    images: list[dict[str, Any]] = []
    names = [outputs.image_url(plan.first_number + first + index) for index in range(len(files))]
    for index, (file, url) in enumerate(zip(files, names)):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        images.append(
            {
                "name": urls.name(url),
                "frame": plan.info.skipped + first + index,
                "time": round(frame_time(plan.info, first + index), 6),
                "bytes": file.stat().st_size,
                "sha256": digest,
            }
        )
    geometry = plan.geometry
    manifest = {
        "version": MANIFEST,
        "key": job.key,
        "source": plan.source,
        "width": geometry.out_width,
        "height": geometry.out_height,
        "pix_fmt": plan.encode.pix_fmt,
        "frame_rate": list(plan.info.frame_rate),
        "images": images,
    }
    listing = files[0].parent / "manifest.json"
    listing.write_text(json.dumps(manifest, indent=1))
    if announce:
        output = announce_output(job, listing, outputs.url, outputs.pattern)
    else:
        output = OutputFile(outputs.url, listing.stat().st_size, urls.digest(str(listing)), outputs.pattern)
    urls.remove(outputs.url, missing_ok=True)  # it speaks of images that are about to be replaced
    for file, url, image in zip(files, names, images):
        urls.publish(file, url, overwrite=True, sha256=image["sha256"], consume=True)
    urls.publish(listing, outputs.url, overwrite=True, sha256=output.sha256, consume=True)
    return output


def all_there(outputs: Outputs) -> bool:
    """Whether every image that a manifest names is there with its size."""
    sizes = urls.list_sizes(urls.parent(outputs.url))
    try:
        found = json.loads(urls.read_bytes(outputs.url))
        return all(sizes.get(image["name"]) == image["bytes"] for image in found["images"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def foreign_image(outputs: Outputs, plan: JobPlan) -> str | None:
    """An image that is in the way, if there is one."""
    there = urls.list_sizes(urls.parent(outputs.url))
    wanted = (urls.name(outputs.image_url(plan.first_number + index)) for index in range(plan.info.frames))
    return next((name for name in wanted if name in there), None)


def _write(folder: Path, data: bytes, number: int, plan: JobPlan) -> Path:
    file = folder / f"{frame_name(WORK_PATTERN, number)}.{plan.encode.container}"
    with open(file, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return file
