"""A queue behind a bucket (moto): redelivered until accepted, then gone; multipart double notices are one event."""

import json
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from flashvsr_core.errors import TransientError, UserError
from tasks.listen import queue as module
from tasks.listen.notices import ObjectCreated, Watched
from tasks.listen.queue import Queue, drain
from tests.listen.aws import BUCKET, Aws, moto

WATCHED = Watched((f"s3://{BUCKET}/in",))


class Sink:
    """Takes notices, after refusing the first few."""

    def __init__(self, refuse: int = 0) -> None:
        self.taken: list[ObjectCreated] = []
        self.refuse = refuse

    def deliver(self, notices: Sequence[ObjectCreated]) -> None:
        self.refuse -= 1
        if self.refuse >= 0:
            raise TransientError("Prefect is down")
        self.taken += notices


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    monkeypatch.setattr(module, "PAUSE", 0.1)
    with moto() as made:
        for name, value in made.env.items():
            monkeypatch.setenv(name, value)
        yield made


def drained(aws: Aws, sink: Sink, left: int = 0) -> list[ObjectCreated]:
    """What is delivered until only `left` messages are in the queue."""
    stop = threading.Event()
    thread = threading.Thread(target=drain, args=(Queue(aws.queue_url), WATCHED, sink.deliver, stop, 1))
    thread.start()
    deadline = time.monotonic() + 60
    while aws.waiting() > left and time.monotonic() < deadline:
        time.sleep(0.2)
    stop.set()
    thread.join()
    assert aws.waiting() == left
    return sink.taken


def test_every_object_is_told_of_until_it_is_accepted(aws: Aws) -> None:
    aws.s3.put_object(Bucket=BUCKET, Key="in/my clip+ä.mp4", Body=b"1")
    aws.s3.put_object(Bucket=BUCKET, Key="elsewhere/a.mp4", Body=b"2")
    aws.s3.put_object(Bucket=BUCKET, Key="in/.flashvsr/x/segments/00000.mp4", Body=b"3")
    aws.put_in_parts("in/large.mp4")
    taken = drained(aws, Sink(refuse=2))
    assert {notice.key for notice in taken} == {"in/my clip+ä.mp4", "in/large.mp4"}
    assert len({notice.id for notice in taken}) == 2
    assert len(taken) >= 2


def test_what_is_no_notice_stays_for_somebody_to_look_at(aws: Aws) -> None:
    drained(aws, Sink())  # the test event of the bucket
    for text in ("nonsense", json.dumps({"Records": [{}]})):
        aws.sqs.send_message(QueueUrl=aws.queue_url, MessageBody=text)
    aws.s3.put_object(Bucket=BUCKET, Key="in/a.mp4", Body=b"1")
    assert [notice.key for notice in drained(aws, Sink(), left=2)] == ["in/a.mp4"]


def test_a_queue_that_is_not_there_ends_it(aws: Aws) -> None:
    with pytest.raises(UserError, match="queue"):
        drain(Queue(aws.queue_url.replace("inbox", "outbox")), WATCHED, Sink().deliver, threading.Event(), 1)
    with pytest.raises(UserError, match="looks like"):
        Queue("inbox")
