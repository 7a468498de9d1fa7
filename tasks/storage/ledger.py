"""What became of the files of an inbox, as small JSON objects in the store: attempts, and what is done.

Each is known by its URL and content (etag or time, and size), so a file that is replaced begins anew.
"""

import hashlib
import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tasks.storage import urls
from tasks.storage.lease import Lease, hold
from tasks.storage.listing import Entry

DONE = ".done.json"


@dataclass(frozen=True)
class Attempts:
    """How often a file was begun without being finished, and what its last error was."""

    count: int = 0
    error: str = ""


@dataclass(frozen=True)
class Ledger:
    """The records in the folder `url`; those of one file have one writer at a time, which `claim` sees to."""

    url: str

    @property
    def lease_url(self) -> str:
        return urls.join(self.url, "lease", "lease.json")

    def claim(self, entry: Entry, owner: str) -> AbstractContextManager[Lease]:
        """Have one file to oneself: a sweep and an event may mean the same. AlreadyRunning if another run has it."""
        return hold(urls.join(self.url, "claims", f"{key_of(entry)}.json"), owner)

    def is_done(self, entry: Entry) -> bool:
        return urls.exists(self._done_url(entry))

    def finished(self) -> frozenset[str]:
        """Keys of everything that is done, by one listing."""
        return frozenset(n.removesuffix(DONE) for n in urls.list_names(self.url) if n.endswith(DONE))

    def attempts(self, entry: Entry) -> Attempts:
        try:
            found = urls.read_json(self._attempts_url(entry))
            return Attempts(int(found["attempts"]), str(found["error"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return Attempts()  # a damaged record costs attempts, no file

    def begin(self, entry: Entry) -> None:
        """Count an attempt, before it is made: a file that kills its worker is counted too."""
        before = self.attempts(entry)
        self._write(entry, before.count + 1, "it was begun, and its run ended without a word")

    def failed(self, entry: Entry, error: str) -> None:
        self._write(entry, self.attempts(entry).count, error)

    def forgive(self, entry: Entry) -> None:
        """Take the last attempt back: it was not the file's fault."""
        self._write(entry, max(0, self.attempts(entry).count - 1), "")

    def done(self, entry: Entry, output: str) -> None:
        record = {"source": entry.url, "version": entry.version, "size": entry.size, "output": output}
        urls.write_json(self._done_url(entry), record | {"time": time.time()})
        urls.remove(self._attempts_url(entry), missing_ok=True)

    def _write(self, entry: Entry, attempts: int, error: str) -> None:
        record = {"source": entry.url, "version": entry.version, "size": entry.size}
        urls.write_json(self._attempts_url(entry), record | {"attempts": attempts, "error": error, "time": time.time()})

    def _done_url(self, entry: Entry) -> str:
        return urls.join(self.url, f"{key_of(entry)}{DONE}")

    def _attempts_url(self, entry: Entry) -> str:
        return urls.join(self.url, f"{key_of(entry)}.json")


def key_of(entry: Entry) -> str:
    """Names the record of one content of one file."""
    identity = json.dumps([entry.url, entry.version, entry.size])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]
