"""The flow for many files: one after another in one process, so that the model is loaded once."""

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import Any

from prefect import flow

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import FlashvsrError
from flows import settings
from flows.artifacts import show_table
from flows.one_file import FileResult, Status, upscale_file
from tasks.folder import Folder, Skipped
from tasks.media.encode import EncodeParams
from tasks.outputs import container_wanted
from tasks.storage import urls
from tasks.storage.jobs import slug
from tasks.storage.ledger import Ledger
from tasks.storage.listing import STORE, Entry
from tasks.verify import Depth

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchReport:
    """What became of every file of a batch."""

    folder: str
    output_root: str
    files: tuple[FileResult, ...]
    skipped: tuple[Skipped, ...]
    seconds: float

    @property
    def failed(self) -> tuple[FileResult, ...]:
        return tuple(file for file in self.files if file.status == "failed")

    def __str__(self) -> str:
        count = {name: sum(file.status == name for file in self.files) for name in Status.__args__}  # type: ignore[attr-defined]
        parts = [f"{number} {name}" for name, number in count.items() if number]
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        return f"{self.folder}: {', '.join(parts) or 'nothing to do'} in {self.seconds:.0f} s"


class BatchFailed(FlashvsrError):
    """Some files failed; the others are finished. `exit_code` is that of the gravest cause."""

    def __init__(self, report: BatchReport) -> None:
        self.report = report
        lines = [f"{file.source}: {file.error}" for file in report.failed]
        super().__init__(f"{len(lines)} of {len(report.files)} files failed:\n" + "\n".join(lines))
        self.exit_code = max(file.exit_code for file in report.failed)


@flow(name="upscale-batch", flow_run_name="batch-{folder}", log_prints=False, persist_result=False)
def upscale_batch(
    folder: str,
    output_root: str | None = None,
    files: list[str] | None = None,
    glob: str | None = None,
    params: UpscaleParams = UpscaleParams(),
    encode: EncodeParams = EncodeParams(),
    compute: ComputeParams = ComputeParams(),
    store: str | None = None,
    segment_frames: int = 512,
    force: bool = False,
    allow_truncated: bool = False,
    verify: Depth = "joins",
    ledger: str | None = None,
) -> BatchReport:
    """Upscale the videos of a folder or prefix. One that fails costs no other; the run fails at its end, naming each.

    Args:
        folder: Folder or prefix of the sources, looked through at any depth.
        output_root: Outputs go here, under the sources' relative paths; default beside the sources.
        files: Only these: names relative to the folder, or URLs below it.
        glob: Only names like this (*.mov, takes/*); default every name that ends as videos do. With a slash at its
            end (takes/*/) folders of numbered images, each one source.
        params: Everything that changes pixels.
        encode: How the results are encoded.
        compute: Devices and folders; changes no pixels.
        store: Where finished segments are kept; default .flashvsr/ in the output root.
        segment_frames: Frames of one segment, a multiple of 8.
        force: Replace outputs that were not made by us; those we made from the same source always may be.
        allow_truncated: Upscale what can be read of truncated sources.
        verify: joins decodes around every join, full decodes everything.
        ledger: Folder where attempts and finished files are recorded; the inbox sweep sets it.
    """
    begun = time.monotonic()
    place = checked_folder(folder, output_root, params, encode)
    store = urls.normalise(store) if store else urls.join(place.root, STORE)
    settings.roots().check("store", store)
    book = None
    if ledger is not None:
        settings.roots().check("ledger", ledger)
        book = Ledger(urls.normalise(ledger))
    options: dict[str, Any] = {
        "params": params,
        "encode": encode,
        "compute": compute,
        "store": store,
        "segment_frames": segment_frames,
        "allow_truncated": allow_truncated,
        "verify": verify,
    }
    sources: list[Entry] | list[Entry | str]
    sources, skipped = place.choose(glob) if files is None else place.pick(files)
    if not sources:
        log.warning("%s: nothing to upscale", place.url)
    taken: dict[str, str] = {}
    results = tuple(upscale_file(place, source, taken, force, options, book) for source in sources)
    report = BatchReport(place.url, place.root, results, tuple(skipped), time.monotonic() - begun)
    log.info("%s", report)
    show_table(table_of(report), artifact_key("batch", place.url), str(report))
    if report.failed:
        raise BatchFailed(report)
    return report


def checked_folder(folder: str, output_root: str | None, params: UpscaleParams, encode: EncodeParams) -> Folder:
    """The folder of a batch; refuses places outside of this machine's roots before anything is looked at."""
    roots = settings.roots()
    roots.check("folder", folder)
    if output_root is not None:
        roots.check("output_root", output_root)
        output_root = urls.normalise(output_root)
    return Folder(urls.normalise(folder), output_root, params.scale, container_wanted(encode))


def table_of(report: BatchReport) -> list[dict[str, Any]]:
    """The rows of a batch's artifact: every file, failures first."""
    rows = sorted(report.files, key=lambda file: file.status != "failed")
    table: list[dict[str, Any]] = [
        {
            "source": file.source,
            "status": file.status,
            "output": file.output,
            "frames": file.frames,
            "seconds": round(file.seconds, 1),
            "error": file.error,
        }
        for file in rows
    ]
    none = {"output": "", "frames": 0, "seconds": 0.0}
    return table + [{"source": s.source, "status": "skipped", **none, "error": s.reason} for s in report.skipped]


def artifact_key(kind: str, url: str) -> str:
    """One history of artifacts per folder."""
    return f"{kind}-{slug(urls.name(url))}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
