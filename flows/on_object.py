"""The flow that an event starts: one object that was put into an inbox. The sweep makes up for events that got lost."""

import logging
from typing import Any

from prefect import flow

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import FlashvsrError
from flows import settings
from flows.inbox import ledger_of
from flows.one_file import FileResult, upscale_file
from flows.upscale_batch import checked_folder
from tasks.folder import Skipped
from tasks.media.encode import EncodeParams
from tasks.storage import urls
from tasks.storage.listing import STORE
from tasks.verify import Depth

log = logging.getLogger(__name__)


class ObjectFailed(FlashvsrError):
    """The object could not be upscaled; `exit_code` is that of the cause."""

    def __init__(self, result: FileResult) -> None:
        super().__init__(f"{result.source}: {result.error}")
        self.exit_code = result.exit_code


@flow(name="upscale-on-object", flow_run_name="object-{key}", log_prints=False, persist_result=False)
def upscale_on_object(
    bucket: str,
    key: str,
    inbox: str,
    output_root: str,
    glob: str | None = None,
    params: UpscaleParams = UpscaleParams(),
    encode: EncodeParams = EncodeParams(),
    compute: ComputeParams = ComputeParams(),
    store: str | None = None,
    segment_frames: int = 512,
    verify: Depth = "joins",
    max_attempts: int = 3,
) -> FileResult | Skipped:
    """Upscale one object of an inbox, unless it is done, is being made, is an output or failed too often.

    Args:
        bucket: Bucket of the object; from the event.
        key: Key of the object; from the event.
        inbox: Prefix in which the object must be; what lies elsewhere is refused.
        output_root: Outputs go here, under the sources' relative paths.
        glob: Only names like this (*.mov, takes/*); default every name that ends as videos do.
        params: Everything that changes pixels.
        encode: How the results are encoded.
        compute: Devices and folders; changes no pixels.
        store: Where segments and the record of what is done are kept; default .flashvsr/ in the output root.
        segment_frames: Frames of one segment, a multiple of 8.
        verify: joins decodes around every join, full decodes everything.
        max_attempts: An object that failed this often is left alone until it is replaced.
    """
    place = checked_folder(inbox, output_root, params, encode)
    store = urls.normalise(store) if store else urls.join(place.root, STORE)
    settings.roots().check("store", store)
    source = f"s3://{bucket}/{key}"
    settings.roots().check("source", source)
    found = place.choose_one(source, glob)
    if isinstance(found, Skipped):
        return _left(found)
    book = ledger_of(store)
    if (tried := book.attempts(found)).count >= max_attempts:
        return _left(Skipped(source, f"it failed {tried.count} times, the last time because: {tried.error}"))
    options: dict[str, Any] = {
        "params": params,
        "encode": encode,
        "compute": compute,
        "store": store,
        "segment_frames": segment_frames,
        "verify": verify,
    }
    result = upscale_file(place, found, {}, False, options, book)
    if result.status == "failed":
        raise ObjectFailed(result)
    log.info("%s: %s", source, result.status)
    return result


def _left(skipped: Skipped) -> Skipped:
    log.info("%s is left alone: %s", skipped.source, skipped.reason)
    return skipped
