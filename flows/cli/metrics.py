"""`flashvsr metrics`: the metrics file of this machine's workers over HTTP."""

import threading
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flashvsr_core.errors import UserError
from flows.settings import METRICS


def metrics(
    *,
    file: Annotated[Path | None, Parameter(env_var=METRICS, help="The metrics file that workers write.")] = None,
    listen: Annotated[str, Parameter(help="Address to serve /metrics at; port 0: any free one.")] = "127.0.0.1:9464",
) -> None:
    """Serve the metrics of this machine's workers to Prometheus, until interrupted."""
    if file is None:
        raise UserError(f"no metrics file is named; give --file, or set {METRICS} as for the workers")
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UserError(f"listen {listen!r} is not an address; write for example 127.0.0.1:9464")
    from prometheus_client import CollectorRegistry, start_http_server

    from flows.metrics import FileCollector

    registry = CollectorRegistry()
    registry.register(FileCollector(file))
    try:
        server, _thread = start_http_server(int(port), host, registry)
    except OSError as error:
        raise UserError(f"cannot listen at {listen} ({error}); choose another address with --listen") from error
    print(f"http://{host}:{server.server_port}/metrics", flush=True)
    threading.Event().wait()
