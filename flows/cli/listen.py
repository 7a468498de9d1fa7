"""`flashvsr listen`: notices of created objects become events on a Prefect server."""

import ipaddress
import logging
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flashvsr_core.errors import UserError

TOKEN = "FLASHVSR_LISTEN_TOKEN"


def _whole(_type: object, value: str, delimiter: str | None = None) -> list[str]:
    """The variables name one place each, and `flashvsr deploy` takes them as they are: names may have spaces."""
    return [value]


Inboxes = Annotated[
    list[str],
    Parameter(
        env_var="FLASHVSR_INBOX", env_var_split=_whole, help="Bucket or prefix (s3://...) to watch; may be repeated."
    ),
]
Outboxes = Annotated[
    list[str] | None,
    Parameter(env_var="FLASHVSR_OUTBOX", env_var_split=_whole, help="Output root; objects under it are ignored."),
]
Http = Annotated[str | None, Parameter(help="ADDRESS:PORT to take webhooks at; a port alone means loopback.")]


def listen(
    *,
    inbox: Inboxes,
    outbox: Outboxes = None,
    sqs: Annotated[str | None, Parameter(help="URL of an SQS queue that S3 or EventBridge sends to.")] = None,
    http: Http = None,
    token_file: Annotated[Path | None, Parameter(help=f"File with the webhooks' bearer token; else {TOKEN}.")] = None,
    allow_remote: Annotated[bool, Parameter(help="Let --http be an address that other machines reach.")] = False,
) -> None:
    """Turn notices of created objects into events on the server of PREFECT_API_URL, until interrupted."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    for ours in ("flows", "tasks"):
        logging.getLogger(ours).setLevel(logging.INFO)
    address = _address(http, allow_remote) if http is not None else None
    token = _token(token_file)
    from flows import listen as bridge  # Prefect is slow to import
    from tasks.listen.notices import Watched
    from tasks.storage import urls

    # An outbox that is no bucket holds nothing that could be told of.
    outputs = tuple(place for place in outbox or () if not urls.is_local(place))
    bridge.listen(Watched(tuple(inbox), outputs), sqs, address, token)


def _address(text: str, allow_remote: bool) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        number = int(port)
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise UserError(f"{text!r} is no address; write PORT, 127.0.0.1:PORT or [::1]:PORT") from error
    if not 0 < number < 65536:
        raise UserError(f"port {number} must be 1 to 65535")
    if not loopback and not allow_remote:
        raise UserError(f"{host} can be reached from other machines; say --allow-remote if that is meant")
    return host, number


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        return file.read_text().strip()
    except OSError as error:
        raise UserError(f"cannot read the token in {file}: {error.strerror}; check the name") from error
