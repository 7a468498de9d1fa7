"""The child that runs Prefect's server for one command: prints its URL, ends when standard input is closed."""

import asyncio
import json
import os
import signal
import socket
import sys
import threading

import uvicorn


def main() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    # Whoever started this holds the other end of our standard input; it closes with that process, even a killed one.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_serve(server, listener, port))


async def _serve(server: uvicorn.Server, listener: socket.socket, port: int) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    if server.started:
        print(json.dumps({"url": f"http://127.0.0.1:{port}/api"}), flush=True)
    await serving


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(5)
    os._exit(1)


if __name__ == "__main__":
    main()
