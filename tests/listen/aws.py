"""moto's S3 and SQS: a bucket that notifies a queue."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import botocore.session
from botocore.exceptions import EndpointConnectionError

from tests.s3server import free_ports

BUCKET = "videos"
PART = 5 << 20  # bytes, S3's smallest


class Aws:
    """S3 and SQS of moto, with a bucket that notifies a queue."""

    def __init__(self, endpoint: str) -> None:
        self.env = {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
        }
        session = botocore.session.get_session()
        session.set_credentials("x", "x")
        self.s3: Any = session.create_client("s3", "us-east-1", endpoint_url=endpoint)
        self.sqs: Any = session.create_client("sqs", "us-east-1", endpoint_url=endpoint)
        wait_until_up(self.s3)
        self.s3.create_bucket(Bucket=BUCKET)
        attributes = {"VisibilityTimeout": "1"}
        self.queue_url = self.sqs.create_queue(QueueName="inbox", Attributes=attributes)["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["QueueArn"])["Attributes"]
        told = [{"QueueArn": arn["QueueArn"], "Events": ["s3:ObjectCreated:*"]}]
        self.s3.put_bucket_notification_configuration(
            Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": told}
        )

    def waiting(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=names)["Attributes"]
        return sum(map(int, found.values()))

    def put_in_parts(self, key: str) -> None:
        """A multipart upload, of which moto, like some stores, tells twice."""
        started = self.s3.create_multipart_upload(Bucket=BUCKET, Key=key)
        where = {"Bucket": BUCKET, "Key": key, "UploadId": started["UploadId"]}
        tags = [self.s3.upload_part(**where, PartNumber=i, Body=bytes(PART))["ETag"] for i in (1, 2)]
        parts = [{"PartNumber": i, "ETag": tag} for i, tag in enumerate(tags, 1)]
        self.s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})


@contextmanager
def moto() -> Iterator[Aws]:
    """A server of its own on a free port."""
    with ExitStack() as stack:
        (port,) = free_ports(stack, 1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Aws(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def wait_until_up(client: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client.list_buckets()
            return
        except EndpointConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
