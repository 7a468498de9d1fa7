"""A word to workers in other processes and on other machines: begin no further segment of this job.

`halt.json` in the job's directory, which every worker reaches, whatever cluster it belongs to.
"""

import logging
import time

from flashvsr_core.errors import FlashvsrError
from tasks.stop import Stopped
from tasks.storage import urls
from tasks.storage.jobs import Job

log = logging.getLogger(__name__)


def ask(job: Job) -> None:
    """Ask the job's workers; a store that cannot be written leaves them uninformed."""
    try:
        urls.write_json(job.halt_url, {"at": time.time()})
    except (FlashvsrError, OSError) as error:
        log.warning("workers of %s could not be told to stop: %s", job.url, error)


def forget(job: Job) -> None:
    """For the holder of the job's lease: its workers may begin segments."""
    try:
        urls.remove(job.halt_url, missing_ok=True)
    except (FlashvsrError, OSError) as error:
        log.warning("%s is left behind: %s", job.halt_url, error)


def before_segment(job: Job) -> None:
    """Stopped if no further segment may begin."""
    if urls.exists(job.halt_url):
        raise Stopped("stopped before this segment was begun; run the same command again to go on")
