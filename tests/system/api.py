"""The REST interface of a Prefect server, as its UI uses it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
PATIENCE = 120.0  # seconds for what passes: a restart, a database that is locked, a machine that is busy


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
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

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
        logs = [f"{path.name}: {path.read_text(errors='replace')[-2500:]}" for path in self.logs.glob("*.log")]
        raise AssertionError(f"{what}: not within {seconds} s\n" + "\n".join(logs))
