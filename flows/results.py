"""Where Prefect keeps task results: on the job's store, so that any machine finds them. Losing them costs nothing."""

from pathlib import Path
from typing import Any

from prefect.filesystems import RemoteFileSystem

from tasks.storage import urls
from tasks.storage.jobs import Job


def result_storage(job: Job) -> Path | Any:
    """Prefect's result storage for a job's store."""
    url = urls.join(urls.parent(job.url), "results")
    if urls.is_local(url):
        return urls.local_path(url)
    return RemoteFileSystem(basepath=url)
