"""Notices from an SQS queue: long poll, and a message is deleted only when all it tells of was delivered."""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flashvsr_core.errors import TransientError, UserError
from tasks.listen.notices import NotWatched, ObjectCreated, Unreadable, Watched, parse
from tasks.storage.faults import explained

log = logging.getLogger(__name__)

LONG_POLL = 20  # seconds, SQS's limit
BATCH = 10  # messages at once, SQS's limit
PAUSE = 5.0  # seconds after a fault that may pass

Deliver = Callable[[Sequence[ObjectCreated]], None]


class Queue:
    """One SQS queue. Credentials, region and endpoint are found where AWS's own tools look for them (AWS_*)."""

    def __init__(self, url: str) -> None:
        try:
            from botocore.session import get_session
        except ImportError as error:
            raise UserError(f"SQS needs a package that is missing ({error}); pip install 'flashvsr[s3]'") from error
        if not re.match(r"https?://\S+/\S+$", url):
            raise UserError(f"{url!r} is not the URL of a queue; it looks like https://sqs.REGION.amazonaws.com/1/NAME")
        session = get_session()
        named = re.match(r"https?://sqs\.([a-z0-9-]+)\.", url)
        region = session.get_config_variable("region") or (named[1] if named else None)
        self.url = url
        with explained("open", url):
            if region is None:
                raise UserError(f"the region of {url} is not known; set AWS_DEFAULT_REGION")
            self._client: Any = session.create_client("sqs", region_name=region)

    def receive(self, wait: int = LONG_POLL) -> list[dict[str, Any]]:
        with _explained("receive from", self.url):
            found = self._client.receive_message(QueueUrl=self.url, MaxNumberOfMessages=BATCH, WaitTimeSeconds=wait)
        return list(found.get("Messages", []))

    def delete(self, message: dict[str, Any]) -> None:
        with _explained("delete from", self.url):
            self._client.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])


@contextmanager
def _explained(doing: str, url: str) -> Iterator[None]:
    """Like the storage's errors; a queue that is not there or not ours ends the listening."""
    try:
        with explained(doing, url):
            yield
    except TransientError as error:
        response = getattr(error.__cause__, "response", {})
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        # 403 and 400: no access, no such queue, wrong credentials. Throttling is a 400 too, but passes.
        if status in (400, 403) and "Throttl" not in str(response.get("Error", {}).get("Code")):
            raise UserError(f"cannot {doing} the queue {url}: {error.__cause__}; check URL and credentials") from error
        raise


def drain(queue: Queue, watched: Watched, deliver: Deliver, stop: threading.Event, wait: int = LONG_POLL) -> None:
    """Deliver what comes until `stop` is set. Faults that may pass are waited out; a UserError ends it."""
    while not stop.is_set():
        try:
            for message in queue.receive(wait):
                _handle(queue, message, watched, deliver)
        except TransientError as error:
            # What was not deleted is given out again by the queue.
            log.warning("%s; trying again in %.0f s", error, PAUSE)
            stop.wait(PAUSE)


def _handle(queue: Queue, message: dict[str, Any], watched: Watched, deliver: Deliver) -> None:
    try:
        notices = parse(message["Body"].encode())
    except Unreadable as error:
        # Not deleted: a dead-letter queue keeps it for somebody to look at.
        log.error("message %s of %s is left in the queue: %s", message.get("MessageId"), queue.url, error)
        return
    wanted = []
    for notice in notices:
        try:
            if watched.wants(notice):
                wanted.append(notice)
        except NotWatched as error:
            log.warning("ignored: %s", error)
    if wanted:
        deliver(wanted)
    queue.delete(message)
