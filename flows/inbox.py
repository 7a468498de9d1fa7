"""The flow that looks after an inbox: whatever lies there complete and is not done goes into one batch."""

import logging
import time
from dataclasses import dataclass

from prefect import flow

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import AlreadyRunning, UserError
from flows import settings
from flows.artifacts import show_table
from flows.patience import patiently
from flows.upscale_batch import BatchReport, artifact_key, checked_folder, upscale_batch
from tasks.folder import Folder, Skipped
from tasks.media.encode import EncodeParams
from tasks.storage import urls
from tasks.storage.lease import hold
from tasks.storage.ledger import Ledger, key_of
from tasks.storage.listing import STORE, Entry
from tasks.verify import Depth

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepReport:
    """What one look at an inbox led to; `batch` is None where there was nothing to do."""

    inbox: str
    done: int  # finished before this sweep
    handed: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    batch: BatchReport | None = None
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.inbox}: {len(self.handed)} handed over, {len(self.skipped)} left alone, {self.done} done before"
        return f"{text}; {self.note}" if self.note else text


@flow(name="inbox-sweep", flow_run_name="sweep-{inbox}", log_prints=False, persist_result=False)
def inbox_sweep(
    inbox: str,
    output_root: str,
    glob: str | None = None,
    params: UpscaleParams = UpscaleParams(),
    encode: EncodeParams = EncodeParams(),
    compute: ComputeParams = ComputeParams(),
    store: str | None = None,
    segment_frames: int = 512,
    verify: Depth = "joins",
    min_age: float = 30.0,
    look_again: float = 5.0,
    max_attempts: int = 3,
) -> SweepReport:
    """Upscale what is new in an inbox, in one batch.

    Args:
        inbox: Folder or prefix that is looked through, at any depth.
        output_root: Outputs go here, under the sources' relative paths.
        glob: Only names like this (*.mov, takes/*); default every name that ends as videos do. With a slash at its
            end (takes/*/) folders of numbered images, each one source.
        params: Everything that changes pixels.
        encode: How the results are encoded.
        compute: Devices and folders; changes no pixels.
        store: Where segments and the record of what is done are kept; default .flashvsr/ in the output root.
        segment_frames: Frames of one segment, a multiple of 8.
        verify: joins decodes around every join, full decodes everything.
        min_age: Files that changed within this many seconds are left for the next sweep.
        look_again: Seconds between two looks; what differs between them is being written.
        max_attempts: A file that failed this often is left alone until it is replaced.
    """
    if min_age < 0 or look_again < 0 or max_attempts < 1:
        raise UserError(
            f"min_age {min_age}, look_again {look_again} and max_attempts {max_attempts} must be at least 0, 0 and 1"
        )
    place = checked_folder(inbox, output_root, params, encode)
    store = urls.normalise(store) if store else urls.join(place.root, STORE)
    settings.roots().check("store", store)
    book = ledger_of(store)
    try:
        with hold(book.lease_url, owner=f"sweep of {place.url}"):
            done, ready, skipped = _look(place, book, glob, min_age, look_again, max_attempts)
            report = SweepReport(place.url, done, tuple(entry.name for entry in ready), tuple(skipped))
            _tell(report)
            if not ready:
                return report
            # Again, it makes only what the first call did not.
            batch = patiently(
                lambda: upscale_batch(
                    place.url,
                    place.root,
                    files=[entry.name for entry in ready],
                    params=params,
                    encode=encode,
                    compute=compute,
                    store=store,
                    segment_frames=segment_frames,
                    verify=verify,
                    ledger=book.url,
                )
            )
            return SweepReport(place.url, done, report.handed, report.skipped, batch)
    except AlreadyRunning as error:
        # A batch that takes longer than the schedule's interval is no fault.
        log.info("%s", error)
        return SweepReport(place.url, 0, (), (), note=str(error))


def ledger_of(store: str) -> Ledger:
    """Where sweeps and events record what became of the files of an inbox."""
    return Ledger(urls.join(store, "inbox"))


def _look(
    place: Folder, book: Ledger, glob: str | None, min_age: float, look_again: float, max_attempts: int
) -> tuple[int, list[Entry], list[Skipped]]:
    """How many are done, which are ready, and why the others are not."""
    chosen, skipped = place.choose(glob)
    finished = book.finished()
    new = [entry for entry in chosen if key_of(entry) not in finished]
    tried = {entry: book.attempts(entry) for entry in new}
    for entry, attempts in tried.items():
        if attempts.count >= max_attempts:
            reason = f"it failed {attempts.count} times, the last time because: {attempts.error}"
            skipped.append(Skipped(entry.url, reason))
    first = [entry for entry in new if tried[entry].count < max_attempts]
    if not first:
        return len(chosen) - len(new), [], skipped
    time.sleep(look_again)
    second = set(place.choose(glob)[0])
    ready = []
    for entry in first:
        if entry not in second:
            skipped.append(Skipped(entry.url, "it is being written: it changed between two looks"))
        # Of a time in the future nothing follows; then the two looks decide.
        elif entry.modified is not None and 0 <= (age := time.time() - entry.modified) < min_age:
            skipped.append(Skipped(entry.url, f"it changed {age:.0f} s ago; it must rest for {min_age:g} s"))
        else:
            ready.append(entry)
    return len(chosen) - len(new), ready, skipped


def _tell(report: SweepReport) -> None:
    log.info("%s", report)
    rows = [{"source": name, "status": "handed over", "reason": ""} for name in report.handed]
    rows += [{"source": s.source, "status": "left alone", "reason": s.reason} for s in report.skipped]
    if rows:
        show_table(rows, artifact_key("inbox", report.inbox), str(report))
