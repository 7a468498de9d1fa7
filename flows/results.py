"""Where Prefect keeps task results: on the job's store, so that any machine finds them. Losing them costs nothing."""

import hashlib
from pathlib import Path

from prefect.filesystems import RemoteFileSystem

from flows.patience import patiently
from tasks.storage import urls
from tasks.storage.jobs import Job


def result_storage(job: Job) -> Path | RemoteFileSystem:
    """Prefect's result storage for a job's store. A remote one must be known to the server: a block without secrets.

    Credentials and endpoints come from the environment, where fsspec and AWS's libraries look for them.
    """
    url = urls.join(urls.parent(job.url), "results")
    if urls.is_local(url):
        return urls.local_path(url)
    storage = RemoteFileSystem(basepath=url)
    name = f"flashvsr-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    patiently(lambda: storage.save(name, overwrite=True))
    return storage
