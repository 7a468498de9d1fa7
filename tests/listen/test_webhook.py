"""The webhook takes notices from who knows the token, of what is watched, and of a bounded size."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from flashvsr_core.errors import TransientError, UserError
from tasks.listen import webhook as module
from tasks.listen.notices import ObjectCreated, Watched
from tasks.listen.webhook import webhook
from tests.listen.test_notices import body, filer, record

TOKEN = "0123456789abcdef-ä"
RIGHT = {"Authorization": f"Bearer {TOKEN}".encode()}
WATCHED = Watched(("s3://videos/in",))


class Sink:
    def __init__(self) -> None:
        self.taken: list[ObjectCreated] = []
        self.down = False

    def deliver(self, notices: Sequence[ObjectCreated]) -> None:
        if self.down:
            raise TransientError("down")
        self.taken += notices


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def client(sink: Sink) -> TestClient:
    return TestClient(webhook(WATCHED, TOKEN, sink.deliver))


def test_notices_are_delivered(client: TestClient, sink: Sink) -> None:
    assert client.post("/", content=body(record("in/a+b.mp4")), headers=RIGHT).status_code == 204
    assert client.post("/", content=filer("/buckets/videos/in/c.mp4"), headers=RIGHT).status_code == 204
    assert client.post("/", content=filer("/buckets/videos/.uploads/c/1.part"), headers=RIGHT).status_code == 204
    assert [notice.key for notice in sink.taken] == ["in/a b.mp4", "in/c.mp4"]
    assert client.get("/health").status_code == 200


def test_the_token_is_needed(client: TestClient, sink: Sink) -> None:
    for value in (None, b"", b"Bearer", b"Bearer ", b"Bearer 0123456789abcdef", b"bearer " + TOKEN.encode(), b"\xff"):
        headers = {} if value is None else {"Authorization": value}
        assert client.post("/", content=body(record("in/a.mp4")), headers=headers).status_code == 401
    assert sink.taken == []
    with pytest.raises(UserError, match="at least 16"):
        webhook(WATCHED, "short", sink.deliver)


def test_nothing_outside_of_what_is_watched(client: TestClient, sink: Sink) -> None:
    for message in (
        body(record("secret/a.mp4")),
        body(record("in/a.mp4"), record("in/../secret/a.mp4")),
        body(record("in/a.mp4", bucket="other")),
        filer("/buckets/other/in/a.mp4"),
    ):
        assert client.post("/", content=message, headers=RIGHT).status_code == 403
    assert client.post("/", content=b"{}", headers=RIGHT).status_code == 400
    assert client.get("/", headers=RIGHT).status_code == 405
    assert client.post("/other", headers=RIGHT).status_code == 404
    assert sink.taken == []


def test_large_and_slow_bodies_are_cut_off(client: TestClient, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:  # without a length in the header
        nonlocal sent
        while sent < 64 * module.LIMIT:
            sent += module.LIMIT
            yield b" " * module.LIMIT

    assert client.post("/", content=b" " * (module.LIMIT + 1), headers=RIGHT).status_code == 413
    assert client.post("/", content=endless(), headers=RIGHT).status_code == 413
    monkeypatch.setattr(module, "BODY_SECONDS", 0.05)
    assert asyncio.run(_post_slowly(client.app)) == 408
    assert sink.taken == []


async def _post_slowly(app: Any) -> int:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)
        yield b"}"

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return (await client.post("/", content=trickle(), headers=RIGHT)).status_code


def test_what_prefect_does_not_take_may_be_sent_again(client: TestClient, sink: Sink) -> None:
    sink.down = True
    assert client.post("/", content=body(record("in/a.mp4")), headers=RIGHT).status_code == 503
    sink.down = False
    assert client.post("/", content=body(record("in/a.mp4")), headers=RIGHT).status_code == 204
