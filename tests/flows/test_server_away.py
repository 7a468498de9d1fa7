"""Prefect's server is slow, locked or away for a while: no run dies of it whose computation was fine."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency import services
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.settings import get_current_settings

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import FlashvsrError, UserError
from flows import patience, serving, settings
from flows.deploy import deploy
from flows.patience import ServerLost, may_pass, of_server, patiently
from flows.results import result_storage
from flows.upscale_batch import upscale_batch
from flows.upscale_segments import _outcome
from flows.upscale_video import upscale_video
from tasks.media.encode import EncodeParams
from tasks.report import RunReport
from tasks.storage.jobs import Job, SegmentResult
from tasks.workers import WorkerDied
from tests.flows.clips import make_clip
from tests.flows.faults import asked_for, bad_day
from tests.test_imports import ROOT

pytestmark = pytest.mark.usefixtures("prefect_server")

ACQUIRE = "/concurrency_limits/increment-with-lease"
RELEASE = "/concurrency_limits/decrement-with-lease"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 24, sound=False)


@pytest.fixture
def limit(prefect_server: None) -> Iterator[None]:
    """A limit of the tag that segments have: Prefect asks its server for a slot before each, and gives it back."""
    with get_client(sync_client=True) as client:
        made = client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="tag:gpu", limit=4))
        services._no_limits_cache.clear()  # what an earlier run of this process was told
        try:
            yield
        finally:
            client.delete_global_concurrency_limit_by_name("tag:gpu")
    assert made


Run = Callable[[], RunReport]


@pytest.fixture
def run(clip: Path, cache_dir: Path, tmp_path: Path) -> Run:
    def made() -> RunReport:
        return upscale_video(
            str(clip), str(tmp_path / "out.mp4"), segment_frames=16, **options(cache_dir)
        )  # fmt: skip

    return made


def options(cache_dir: Path) -> dict[str, Any]:
    return {
        "params": UpscaleParams(scale=2, model="nano", preroll=8),
        "encode": EncodeParams(preset="ultrafast", threads=2),
        "compute": ComputeParams(devices="cpu", work_dir=str(cache_dir)),
    }


def is_whole(report: RunReport) -> bool:
    """Every segment was made, and made once."""
    return (report.status, report.segments_computed, {r.attempts for r in report.results}) == ("done", 2, {1})


@pytest.mark.parametrize("kind", ["locked", "refused"])
def test_no_slot_of_a_limit(kind: Any, limit: None, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with bad_day(monkeypatch, asked_for("POST", ACQUIRE), kind, times=5) as fault:  # more than a run has rounds
        assert is_whole(run())
    assert fault.count == 5


def test_a_slot_that_is_not_taken_back(limit: None, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with bad_day(monkeypatch, asked_for("POST", RELEASE), times=1000) as fault:
        assert is_whole(run())
    assert fault.count >= 2


def test_the_end_of_the_subflow_cannot_be_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def concerned(request: httpx.Request) -> bool:
        """States of the second run that speaks: the subflow's, from its second on, which is its end."""
        if not request.url.path.endswith("/set_state"):
            return False
        asked.append(request.url.path)
        return request.url.path != asked[0] and asked.count(request.url.path) > 1

    with bad_day(monkeypatch, concerned, "cut", times=1) as fault:
        assert is_whole(run())
    assert fault.count == 1


class LostAround(PrefectFuture[SegmentResult]):
    """A future as Dask's: what failed around its task, and not in it, is only in its result."""

    def __init__(self, error: Exception) -> None:
        super().__init__(uuid4())
        self.error = error

    def wait(self, timeout: float | None = None) -> None:
        """Says nothing."""

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> SegmentResult:
        raise self.error

    def add_done_callback(self, fn: Any) -> None:
        raise NotImplementedError


def test_what_failed_around_a_clusters_task() -> None:
    refused = ConcurrencySlotAcquisitionError("no slot")
    assert _outcome(LostAround(refused)) is refused
    assert isinstance(_outcome(LostAround(OSError("gone"))), WorkerDied)


@pytest.mark.system  # takes half a minute
def test_artifacts_are_never_worth_a_run(
    run: Run, cache_dir: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bad_day(monkeypatch, asked_for("POST", "/artifacts"), times=1000) as fault:
        assert is_whole(run())
        assert fault.count > 0
        before = fault.count
        batch = upscale_batch(str(clip.parent), str(clip.parent / "out"), **options(cache_dir))
        assert [file.status for file in batch.files] == ["done"]
        assert fault.count > before


def test_a_server_that_is_locked_by_itself_fails_no_test(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the others, whose clients repeat nothing: on a busy machine the server's database is locked at times."""
    with (
        bad_day(monkeypatch, asked_for("POST", "/flow_runs/")) as server,
        bad_day(monkeypatch, asked_for("POST", "/nowhere"), "refused"),
    ):
        assert is_whole(run())
    assert server.count == 2


def test_a_file_of_a_batch_is_begun_again(cache_dir: Path, clip: Path, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[httpx.Request] = []

    def concerned(request: httpx.Request) -> bool:
        """Creations of runs, but not of the batch's own, which comes first."""
        if not asked_for("POST", "/flow_runs/")(request) or not request.url.path.endswith("/flow_runs/"):
            return False
        asked.append(request)
        return len(asked) > 1

    with bad_day(monkeypatch, concerned, "refused") as fault:
        batch = upscale_batch(
            str(clip.parent),
            str(tmp_path / "out"),
            files=[clip.name],
            ledger=str(tmp_path / "book"),
            **options(cache_dir),
        )
    assert [file.status for file in batch.files] == ["done"]
    assert fault.count == 2


def test_where_results_are_kept_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with bad_day(monkeypatch, asked_for("POST", "/block_"), "refused") as fault:
        assert result_storage(Job.at("memory://store", "clip.mp4", "0" * 64, "mp4"))
    assert fault.count == 2


@pytest.mark.parametrize("fault", [("refused", "/health"), ("locked", "/work_pools/"), ("cut", "/deployments/")])
def test_deploying(fault: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    kind, path = fault
    with bad_day(monkeypatch, lambda request: path in request.url.path, kind) as found:
        assert len(deploy(None, "flashvsr-here")) == 4
        with get_client(sync_client=True) as client:
            made = client.read_deployment_by_name("inbox-sweep/inbox-sweep")
    assert found.count == 2
    assert made.job_variables["env"]["PREFECT_CLIENT_MAX_RETRIES"] == "6"


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.SERVER_PATIENCE, "0.2")
    everything = bad_day(monkeypatch, lambda request: True, "refused", times=1000)
    with everything as fault, pytest.raises(ServerLost, match="does not answer"):
        deploy(None, "flashvsr-here")
    assert fault.count > 1
    monkeypatch.setenv(settings.SERVER_PATIENCE, "long")
    with pytest.raises(UserError, match="SERVER_PATIENCE 'long'"):
        settings.server_patience()


def test_what_a_service_asks_is_asked_until_it_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def polled() -> list[Any]:
        runner = serving.PatientRunner()
        async with get_client() as client:
            runner._outlast(client, "read_deployments")
            runner._outlast(client, "read_flow_run")
            with pytest.raises(ObjectNotFound):  # an answer
                await client.read_flow_run(uuid4())
            return await client.read_deployments()

    monkeypatch.setattr(serving, "POLL_RETRIES", 0)
    with bad_day(monkeypatch, asked_for("POST", "/deployments/filter"), "refused", times=6) as fault:
        asyncio.run(polled())
    assert fault.count == 6
    said = [record.message for record in caplog.records if record.name == "flows.patience"]
    assert ["does not answer" in line for line in said] == [True, False]  # neither each time, nor silently
    assert "answers again" in said[-1]


def test_what_may_pass() -> None:
    url = str(get_current_settings().api.url)
    request, elsewhere = httpx.Request("POST", f"{url}/flow_runs/"), httpx.Request("GET", "https://example.org/x")

    def status(number: int, of: httpx.Request = request) -> httpx.HTTPStatusError:
        return httpx.HTTPStatusError("", request=of, response=httpx.Response(number, request=of))

    def wrapped(inner: Exception, outer: Exception) -> Exception:
        outer.__cause__ = inner
        return outer

    refused = httpx.ConnectError("refused", request=request)
    passing = [
        refused,
        httpx.ReadTimeout("", request=request),
        status(503),
        status(500),
        status(429),
        wrapped(status(503), ConcurrencySlotAcquisitionError("no slot")),
        wrapped(refused, RuntimeError("Failed to reach API")),
        ConcurrencySlotAcquisitionError("no slot"),  # came from another process
    ]
    for error in passing:
        assert (may_pass(error), of_server(error)) == (True, True), error
    final = [status(401), status(404), status(422), wrapped(status(422), ConcurrencySlotAcquisitionError("no slot"))]
    for error in final:
        assert (may_pass(error), of_server(error)) == (False, True), error
    others = [
        httpx.ConnectError("refused", request=elsewhere),
        status(503, elsewhere),
        httpx.ConnectError("of no request"),
        OSError("disk"),
        wrapped(refused, FlashvsrError("said by us")),
        ServerLost("was waited for already"),
    ]
    for error in others:
        assert (may_pass(error), of_server(error)) == (False, False), error
    with pytest.raises(OSError, match="disk"):
        patiently(lambda: (_ for _ in ()).throw(OSError("disk")))
    assert "secret" not in str(patience.lost(status(503, httpx.Request("GET", f"{url}/secret"))))


def test_a_command_says_it_in_one_line(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://user:secret@127.0.0.1:9/api")
    monkeypatch.setenv(settings.SERVER_PATIENCE, "0")
    command = [sys.executable, "-m", "flows.cli.main", "run", str(clip), str(tmp_path / "out.mp4")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "Prefect's server at http://127.0.0.1:9/api does not answer" in line
    assert "secret" not in line
