"""The REST interface of a Prefect server, as its UI uses it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
PATIENCE = 400.0  # seconds for what passes: a restart, a database that is locked, a machine that stands still


class Api:
    """Requests to the server of an environment. `logs`: a folder whose *.log are shown when something never happens."""

    def __init__(self, env: dict[str, str], logs: Path) -> None:
        self.client = httpx.Client(base_url=env["PREFECT_API_URL"], timeout=60)
        self.logs = logs

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """One request. No answer and 5xx (the server's database is locked while it is busy) are waited out."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self.client.request(method, path, json=body)
                if answer.status_code < 500 or time.monotonic() > deadline:
                    return answer
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{method} {path}: {error!r} for {PATIENCE} s\n{self.state()}") from None
            time.sleep(0.5)

    def state(self) -> str:
        """Ends of the logs, and what the machine does: who reads of a failure elsewhere has nothing else."""
        logs = [f"{path.name}: {path.read_text(errors='replace')[-2500:]}" for path in self.logs.glob("*.log")]
        return "\n".join([*logs, machine()])

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.request(method, path, body).raise_for_status()
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/deployments/name/{name}"))

    def set_parameters(self, name: str, parameters: dict[str, Any]) -> None:
        found = self.deployment(name)
        self.call("PATCH", f"/deployments/{found['id']}", {"parameters": found["parameters"] | parameters})

    def set_schedule(self, name: str, cron: str, active: bool) -> None:
        found = self.deployment(name)
        (schedule,) = found["schedules"]
        body = {"schedule": {"cron": cron, "timezone": "UTC"}, "active": active}
        self.call("PATCH", f"/deployments/{found['id']}/schedules/{schedule['id']}", body)

    def create_run(self, name: str, parameters: dict[str, Any] | None = None) -> httpx.Response:
        """What the form's button does; refused parameters are in the answer."""
        body = {"parameters": parameters or {}, "state": {"type": "SCHEDULED"}}
        return self.request("POST", f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)

    def start(self, name: str, parameters: dict[str, Any] | None = None) -> str:
        return str(self.create_run(name, parameters).raise_for_status().json()["id"])

    def run(self, run: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/flow_runs/{run}"))

    def finish(self, run: str, seconds: float = 600) -> dict[str, Any]:
        """The run, when it has ended."""
        self.until(lambda: self.run(run)["state_type"] in ENDED, seconds, f"run {run}")
        return self.run(run)

    def runs_of(self, flow: str) -> list[dict[str, Any]]:
        return list(self.call("POST", "/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}, "limit": 200}))

    def upscalings(self, source: str) -> list[str]:
        """States of every run of the main flow for one source."""
        return [r["state_type"] for r in self.runs_of("upscale-video") if r["parameters"]["source"] == source]

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.5)
        raise AssertionError(f"{what}: not within {seconds} s\n{self.state()}")


def machine() -> str:
    """Load, memory, the processor's share that waits for disks, and the processes that computed most."""
    memory, swap, waits = psutil.virtual_memory(), psutil.swap_memory(), psutil.cpu_times_percent(1.0)
    found = [p.info for p in psutil.process_iter(["pid", "status", "cpu_times", "cmdline"]) if p.info["cpu_times"]]
    found.sort(key=lambda info: info["cpu_times"].user + info["cpu_times"].system, reverse=True)
    lines = [f"{i['pid']} {i['status']} {' '.join(i['cmdline'] or [])[:100]}" for i in found[:8]]
    return "\n".join(
        [
            f"load {', '.join(f'{one:.1f}' for one in psutil.getloadavg())}",
            f"memory free {memory.available >> 20} of {memory.total >> 20} MiB, swap used {swap.used >> 20} MiB",
            f"processor idle {waits.idle} %, waiting for disks {getattr(waits, 'iowait', 0.0)} %",
            *lines,
        ]
    )
