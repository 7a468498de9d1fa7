"""Notices by HTTP, from stores that post webhooks: one application with one address, guarded by a bearer token."""

import asyncio
import hmac
import logging
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from flashvsr_core.errors import FlashvsrError, UserError
from tasks.listen.notices import NotWatched, ObjectCreated, Unreadable, Watched, parse

log = logging.getLogger(__name__)

LIMIT = 1 << 20  # bytes of one request; a notice has a few thousand
BODY_SECONDS = 10.0  # for a body to arrive, so that slow senders hold nothing
SHORTEST_TOKEN = 16  # characters

Deliver = Callable[[Sequence[ObjectCreated]], None]


def webhook(watched: Watched, token: str, deliver: Deliver) -> Starlette:
    """The application: `POST /` takes notices, `GET /health` answers without a token.

    Answers: 204 accepted (or nothing worth an event), 400 unreadable, 401 wrong token, 403 outside of what is watched,
    408 too slow, 413 too large, 503 not accepted by Prefect: then the store may send it again.
    """
    if len(token) < SHORTEST_TOKEN:
        raise UserError(f"the token has {len(token)} characters; take at least {SHORTEST_TOKEN} random ones")
    expected = f"Bearer {token}".encode()

    async def receive(request: Request) -> Response:
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, expected):
            return PlainTextResponse("a bearer token is needed", 401, {"WWW-Authenticate": "Bearer"})
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(request)
        except TimeoutError:
            return PlainTextResponse("the body took too long", 408)
        except ClientDisconnect:
            return PlainTextResponse("the body is incomplete", 400)
        if body is None:
            return PlainTextResponse(f"at most {LIMIT} bytes", 413)
        try:
            wanted = [notice for notice in parse(body) if watched.wants(notice)]
            if wanted:
                await run_in_threadpool(deliver, wanted)
        except Unreadable as error:
            log.warning("refused: %s", error)
            return PlainTextResponse(str(error), 400)
        except NotWatched as error:
            log.warning("refused: %s", error)
            return PlainTextResponse("outside of what is watched", 403)
        except FlashvsrError as error:
            log.error("not delivered: %s", error)
            return PlainTextResponse("not accepted now; send it again", 503)
        return Response(status_code=204)

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/", receive, methods=["POST"]), Route("/health", health)])


async def _body(request: Request) -> bytes | None:
    """The body; None as soon as it is larger than the limit, whatever its header says."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LIMIT:
            return None
        parts.append(part)
    return b"".join(parts)
