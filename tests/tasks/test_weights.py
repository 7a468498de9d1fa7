"""Published files on their way here: fetched from mirrors and the hub, verified, converted, located."""

import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import httpx
import numpy as np
import pytest
from huggingface_hub import constants

from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.modelfiles import sha256_of
from flashvsr_core.registry import FileSpec
from flashvsr_core.upscaler import Upscaler
from tasks import models, weights
from tests.core.published import DIT, KINDS, PROMPT, Published, publish
from tests.s3server import S3Server

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
PARTS = {"dit", "lq_proj", "prompt", "tcdecoder", "vae"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture
def mirror(published: Published, tmp_path: Path) -> str:
    """A folder that holds both repositories and the prompt tensor."""
    copy_tree(published.prompt.parents[3], tmp_path / "mirror")
    return str(tmp_path / "mirror")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def copy_tree(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file() and "ComfyUI" not in path.parts:
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


def actions(files: list[models.ModelFile]) -> dict[str, str]:
    return {file.role: file.action for file in files}


def run(published: Published, model: str, folder: Path) -> np.ndarray:
    found = weights.locate(model, "tiny", folder, registry=published.registry)
    upscaler = Upscaler.load(weights.load(found), UpscaleParams(scale=2, preroll=0, precision="fp32"))
    return np.concatenate(list(upscaler.stream(iter([FRAMES]))))  # type: ignore[arg-type]


def whole_way(published: Published, source: str, folder: Path) -> None:
    """Fetch, verify, run, convert, verify, run, for both versions."""
    for model in KINDS:
        files = models.fetch(model, folder, source, published.registry)
        assert {file.role for file in files} == PARTS
        assert all(sha256_of(file.path) == file.sha256 for file in files)
    assert actions(models.fetch("v1.1", folder, source, published.registry)) == dict.fromkeys(PARTS, "present")
    assert actions(files)["tcdecoder"] == "present"  # shared by both versions
    assert not list(folder.rglob("*.part"))
    found, problems = models.verify(folder, None, published.registry)
    assert len(found) == 7
    assert not problems
    before = {model: run(published, model, folder) for model in KINDS}
    for model in KINDS:
        files = models.convert(model, folder, published.registry)
        assert actions(files)["dit"] == "present"
        assert all(file.path.suffix == ".safetensors" for file in files)
    located = weights.locate("v1.1", "full", folder, registry=published.registry)
    assert located.files is not None
    assert {path.suffix for path in located.files.paths.values()} == {".safetensors"}
    assert located.digests["lq_proj"] == published.spec("lq_proj", "v1.1").sha256
    for pickled in [p for p in folder.rglob("*") if p.suffix in (".ckpt", ".pth")]:
        pickled.unlink()
    assert not models.verify(folder, "v1.1", published.registry)[1]
    for model in KINDS:
        assert np.array_equal(run(published, model, folder), before[model])


def test_the_whole_way_from_a_folder(published: Published, mirror: str, tmp_path: Path) -> None:
    whole_way(published, mirror, tmp_path / "models")


@pytest.mark.system
def test_the_whole_way_from_s3(
    published: Published,
    tmp_path: Path,
    seaweed: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = fsspec.filesystem("s3")
    store.put(str(published.prompt.parents[3]) + "/", "media/mirror", recursive=True)
    monkeypatch.setattr(models, "CHUNK", 5000)
    whole_way(published, "s3://media/mirror", tmp_path / "models")


@pytest.mark.system
def test_an_interrupted_fetch_from_s3_goes_on(
    published: Published,
    tmp_path: Path,
    seaweed: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = fsspec.filesystem("s3")
    store.put(str(published.prompt.parents[3]) + "/", "media/resumed", recursive=True)
    interrupt_and_resume(published, "s3://media/resumed", tmp_path / "models", monkeypatch)


def test_an_interrupted_fetch_goes_on(
    published: Published, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_and_resume(published, mirror, tmp_path / "models", monkeypatch)


def interrupt_and_resume(published: Published, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "CHUNK", 20_000)
    size = published.spec("dit", "v1.1").bytes
    assert size is not None
    assert size > 100_000

    def interrupt(name: str, done: int, total: int | None) -> None:
        if done >= 60_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.fetch("v1.1", folder, source, published.registry, interrupt)
    parts = list(folder.rglob("*.part"))
    assert [part.stat().st_size for part in parts] == [60_000]
    assert not list(folder.rglob(DIT))
    seen: list[tuple[str, int, int | None]] = []
    files = models.fetch("v1.1", folder, source, published.registry, lambda *report: seen.append(report))
    assert seen[0] == (DIT, 60_000, size)
    assert actions(files) == dict.fromkeys(PARTS, "fetched")
    assert not list(folder.rglob("*.part"))


def test_a_wrong_file_on_a_mirror_is_not_kept(published: Published, mirror: str, tmp_path: Path) -> None:
    path = Path(mirror, "FlashVSR-v1.1", "LQ_proj_in.ckpt")
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        models.fetch("v1.1", tmp_path / "models", mirror, published.registry)
    spec = published.spec("lq_proj", "v1.1")
    assert f"holds {spec.bytes:,} bytes, sha256 {sha256_of(path)}, instead of" in str(caught.value)
    assert spec.sha256 in str(caught.value)
    assert [p.name for p in (tmp_path / "models" / "v1.1").iterdir()] == [DIT]


def test_a_mirror_with_the_other_version_only(published: Published, tmp_path: Path) -> None:
    """The names are the same: the size or the digest tells."""
    with pytest.raises(UserError, match=r"instead of|has no"):
        models.fetch("v1.0", tmp_path / "models", str(published.folders["v1.1"]), published.registry)
    assert not list((tmp_path / "models").rglob("*.safetensors"))


def test_a_truncated_file_on_a_mirror_is_not_even_fetched(published: Published, mirror: str, tmp_path: Path) -> None:
    os.truncate(Path(mirror, "FlashVSR-v1.1", DIT), 1000)
    os.truncate(Path(mirror, "FlashVSR", DIT), 1000)
    with pytest.raises(UserError, match=rf"FlashVSR-v1.1/{DIT} has 1,000 bytes instead of"):
        models.fetch("v1.1", tmp_path / "models", mirror, published.registry)


def test_a_mirror_may_use_other_names(published: Published, tmp_path: Path) -> None:
    files = models.fetch("v1.1", tmp_path / "models", str(published.comfy / "FlashVSR"), published.registry)
    assert {file.role for file in files} == PARTS
    assert not models.verify(tmp_path / "models", "v1.1", published.registry)[1]


def test_unknown_places(published: Published, tmp_path: Path) -> None:
    for source in (str(tmp_path / "nowhere"), "memory://nowhere"):
        with pytest.raises(UserError, match=f"mirror {source} has no {DIT} of v1.1"):
            models.fetch("v1.1", tmp_path / "models", source, published.registry)
    with pytest.raises(UserError, match="nosuch"):
        models.fetch("v1.1", tmp_path / "models", "nosuch://bucket", published.registry)


def test_a_full_disk_is_foreseen(
    published: Published, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and _Disk())
    with pytest.raises(UserError, match=r"100 bytes free but [\d,]+ are to be fetched"):
        models.fetch("v1.1", tmp_path / "models", mirror, published.registry)


class _Disk:
    free = 100


def test_a_stranger_under_a_published_name_is_not_overwritten(
    published: Published, mirror: str, tmp_path: Path
) -> None:
    place = tmp_path / "models" / "v1.1" / "LQ_proj_in.ckpt"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"move it away"):
        models.fetch("v1.1", tmp_path / "models", mirror, published.registry)
    assert place.read_bytes() == b"mine"


class _Web(BaseHTTPRequestHandler):
    """As much of a hub as is needed: ranges, and connections that break off half-way, the last at once."""

    def __init__(self, published: Published, broken: list[str], ranges: list[str], *args: Any) -> None:
        self.published, self.broken, self.ranges = published, broken, ranges
        super().__init__(*args)

    def do_GET(self) -> None:
        path = self.published.prompt.parents[3] / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.ranges.append(f"{path.name}:{start}")
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if path.name in self.broken:
            data = data[: (start + len(data)) // 2 if start < 3 * len(data) // 4 else start]
            self.close_connection = True
        self.wfile.write(data[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(published: Published, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], list[str]]]:
    """Hub and GitHub on loopback; yields the names whose transfers break off, and what was asked for from where on."""
    broken: list[str] = []
    ranges: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Web, published, broken, ranges))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def address(spec: FileSpec) -> tuple[str, dict[str, str]]:
        below = "" if spec.host == "github" else spec.repository.rpartition("/")[2] + "/"
        return f"http://127.0.0.1:{server.server_port}/{below}{spec.path}", {}

    monkeypatch.setattr(models, "_address", address)
    yield broken, ranges
    server.shutdown()


def test_fetching_from_the_web_goes_on_after_breaks(
    published: Published, web: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    broken, ranges = web
    broken.append(DIT)
    with pytest.raises(UserError, match="run again to go on where it stopped"):
        models.fetch("v1.1", tmp_path / "models", None, published.registry)
    size = published.spec("dit", "v1.1").bytes
    assert size is not None
    starts = [0, size // 2, (size // 2 + size) // 2]  # the last connection brought nothing
    assert ranges == [f"{DIT}:{start}" for start in starts]
    assert not list((tmp_path / "models").rglob(DIT))
    broken.clear()
    ranges.clear()
    files = models.fetch("v1.1", tmp_path / "models", None, published.registry)
    assert actions(files) == dict.fromkeys(PARTS, "fetched")
    assert ranges[0] == f"{DIT}:{starts[-1]}"
    assert not models.verify(tmp_path / "models", "v1.1", published.registry)[1]
    assert sorted(p.name for p in (tmp_path / "models" / "v1.1").iterdir()) == ["LQ_proj_in.ckpt", DIT]


def test_a_whole_download_that_was_not_verified_yet_is_not_fetched_again(
    published: Published, web: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    for role in ("dit", "lq_proj"):  # of the second one in v1.0, the size is not known
        spec = published.spec(role, "v1.0")
        part = tmp_path / "models" / "v1.0" / f".{spec.name}.{spec.sha256[:16]}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(published.path(role, "v1.0").read_bytes())
    models.fetch("v1.0", tmp_path / "models", None, published.registry)
    assert not models.verify(tmp_path / "models", "v1.0", published.registry)[1]
    assert not [entry for entry in web[1] if "LQ" in entry or DIT in entry]


def test_the_hub_is_asked_as_its_own_client_asks(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://hub/{repo_id}/{revision}/{filename}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    url, headers = models._address(published.spec("dit", "v1.1"))
    assert url == f"http://hub/JunhaoZhuang/FlashVSR-v1.1/main/{DIT}"
    assert headers["authorization"] == "Bearer hf_secret"
    assert "authorization" not in models._address(published.spec("prompt", "v1.1"))[1]


def test_no_network_says_what_to_copy_from_where(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise httpx.ConnectError("name or service not known")

    monkeypatch.setattr(httpx, "stream", unreachable)
    with pytest.raises(UserError) as caught:
        models.fetch("v1.1", tmp_path / "models", None, published.registry)
    message = str(caught.value)
    assert "name or service not known" in message
    assert (
        f"https://huggingface.co/JunhaoZhuang/FlashVSR-v1.1/resolve/main/{DIT} to {tmp_path}/models/v1.1/{DIT}"
        in message
    )
    assert (
        f"https://raw.githubusercontent.com/OpenImagingLab/FlashVSR/main/{PROMPT} to "
        f"{tmp_path}/models/shared/posi_prompt.pth" in message
    )
    assert "--from URL" in message
    assert f"flashvsr models verify v1.1 --dir {tmp_path / 'models'}" in message
