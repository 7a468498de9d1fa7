"""A queue behind a bucket (moto): redelivered until accepted, then gone; multipart double notices are one event."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import EndpointConnectionError

from flashvsr_core.errors import TransientError, UserError
from tasks.listen import queue as module
from tasks.listen.notices import ObjectCreated, Watched
from tasks.listen.queue import Queue, drain
from tests.s3server import free_ports

BUCKET = "videos"
WATCHED = Watched((f"s3://{BUCKET}/in",))
PART = 5 << 20  # bytes, S3's smallest


class Aws:
    """S3 and SQS of moto, with a bucket that notifies a queue."""

    def __init__(self, endpoint: str) -> None:
        session = botocore.session.get_session()
        self.s3: Any = session.create_client("s3", endpoint_url=endpoint)
        self.sqs: Any = session.create_client("sqs", endpoint_url=endpoint)
        wait_until_up(self.s3)
        self.s3.create_bucket(Bucket=BUCKET)
        attributes = {"VisibilityTimeout": "1"}
        self.queue = Queue(self.sqs.create_queue(QueueName="inbox", Attributes=attributes)["QueueUrl"])
        arn = self.sqs.get_queue_attributes(QueueUrl=self.queue.url, AttributeNames=["QueueArn"])["Attributes"]
        told = [{"QueueArn": arn["QueueArn"], "Events": ["s3:ObjectCreated:*"]}]
        self.s3.put_bucket_notification_configuration(
            Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": told}
        )

    def waiting(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.queue.url, AttributeNames=names)["Attributes"]
        return sum(map(int, found.values()))


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


def wait_until_up(client: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client.list_buckets()
            return
        except EndpointConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    with ExitStack() as stack:
        (port,) = free_ports(stack, 1)
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "PAUSE", 0.1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Aws(endpoint)
    finally:
        process.kill()
        process.wait()


def drained(aws: Aws, sink: Sink, left: int = 0) -> list[ObjectCreated]:
    """What is delivered until only `left` messages are in the queue."""
    stop = threading.Event()
    thread = threading.Thread(target=drain, args=(aws.queue, WATCHED, sink.deliver, stop, 1))
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
    started = aws.s3.create_multipart_upload(Bucket=BUCKET, Key="in/large.mp4")
    where = {"Bucket": BUCKET, "Key": "in/large.mp4", "UploadId": started["UploadId"]}
    tags = [aws.s3.upload_part(**where, PartNumber=i, Body=bytes(PART))["ETag"] for i in (1, 2)]
    parts = [{"PartNumber": i, "ETag": tag} for i, tag in enumerate(tags, 1)]
    aws.s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    taken = drained(aws, Sink(refuse=2))
    assert {notice.key for notice in taken} == {"in/my clip+ä.mp4", "in/large.mp4"}
    assert len({notice.id for notice in taken}) == 2
    assert len(taken) >= 2


def test_what_is_no_notice_stays_for_somebody_to_look_at(aws: Aws) -> None:
    drained(aws, Sink())  # the test event of the bucket
    for text in ("nonsense", json.dumps({"Records": [{}]})):
        aws.sqs.send_message(QueueUrl=aws.queue.url, MessageBody=text)
    aws.s3.put_object(Bucket=BUCKET, Key="in/a.mp4", Body=b"1")
    assert [notice.key for notice in drained(aws, Sink(), left=2)] == ["in/a.mp4"]


def test_a_queue_that_is_not_there_ends_it(aws: Aws) -> None:
    with pytest.raises(UserError, match="queue"):
        drain(Queue(aws.queue.url.replace("inbox", "outbox")), WATCHED, Sink().deliver, threading.Event(), 1)
    with pytest.raises(UserError, match="looks like"):
        Queue("inbox")
