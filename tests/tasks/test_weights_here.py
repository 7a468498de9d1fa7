"""Published files that are here already: verified, converted, located."""

import os
from pathlib import Path

import pytest
import torch

from flashvsr_core.errors import UserError
from flashvsr_core.modelfiles import sha256_of
from flashvsr_core.weights import read_tensors
from tasks import models, weights
from tests.core.published import DIT, Published
from tests.tasks.test_weights import mirror, own_cache, published

__all__ = ["mirror", "own_cache", "published"]


def test_verify_names_what_is_wrong(published: Published, mirror: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    models.fetch("v1.1", folder, mirror, published.registry)
    path = folder / "shared" / "TCDecoder.ckpt"
    os.truncate(path, 1000)
    (folder / "v1.1" / "LQ_proj_in.ckpt").unlink()
    found, problems = models.verify(folder, "v1.1", published.registry)
    assert len(found) == 4
    assert any(f"{path} with 1,000 bytes" in problem and "truncated" in problem for problem in problems)
    assert any("LQ_proj_in.ckpt" in problem and "is missing" in problem for problem in problems)
    assert "holds no weights" in models.verify(tmp_path / "empty", None, published.registry)[1][0]


def test_verify_does_not_trust_remembered_digests(published: Published, mirror: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    path = next(f.path for f in models.fetch("v1.1", folder, mirror, published.registry) if f.role == "lq_proj")
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert models.verify(folder, "v1.1", published.registry)[1]


def test_digests_of_unchanged_files_are_remembered(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published.folders["v1.1"]
    for path in folder.iterdir():  # files younger than the clock's resolution are never remembered
        os.utime(path, (1, 1))
    monkeypatch.setattr("tasks.storage.fingerprint.SETTLED", -1)
    first = weights.remembered_sha256(folder / DIT)
    monkeypatch.setattr("tasks.storage.local.digest", lambda path: pytest.fail("was read again"))
    assert weights.remembered_sha256(folder / DIT) == first == sha256_of(folder / DIT)


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tasks.storage.fingerprint.SETTLED", -1)
    path = published.folders["v1.1"] / DIT
    assert weights.remembered_sha256(path) == sha256_of(path)
    assert "cannot be remembered" in caplog.text


def test_convert_refuses_what_is_in_its_way_and_damage(published: Published, mirror: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    with pytest.raises(UserError, match=r"holds no weights of v1\.1"):
        models.convert("v1.1", folder, published.registry)
    models.fetch("v1.1", folder, mirror, published.registry)
    other = folder / "v1.1" / "LQ_proj_in.safetensors"
    other.write_bytes(b"mine")
    with pytest.raises(UserError, match="is no conversion"):
        models.convert("v1.1", folder, published.registry)
    other.unlink()
    models.convert("v1.1", folder, published.registry)
    assert torch.equal(
        read_tensors(other)["conv1.bias"], read_tensors(folder / "v1.1" / "LQ_proj_in.ckpt")["conv1.bias"]
    )
    (folder / "v1.1" / "LQ_proj_in.ckpt").unlink()
    data = bytearray(other.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    with pytest.raises(UserError, match=r"LQ_proj_in\.safetensors with .*altered"):
        weights.locate("v1.1", "tiny", folder, registry=published.registry)


def test_auto_takes_v1_1_where_it_is_and_nano_elsewhere(published: Published, mirror: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    found = weights.locate("auto", "tiny", folder, registry=published.registry)
    assert found.spec.name == "nano"
    assert weights.load(found).spec.name == "nano"
    models.fetch("v1.1", folder, mirror, published.registry)
    assert weights.locate("auto", "tiny", folder, registry=published.registry).spec.name == "v1.1"
    (folder / "v1.1" / "LQ_proj_in.ckpt").unlink()
    with pytest.raises(UserError, match=r"lacks LQ_proj_in\.ckpt"):
        weights.locate("auto", "tiny", folder, registry=published.registry)
    with pytest.raises(UserError, match="embedded"):
        weights.locate("nano", "tiny", folder, "causal", published.registry)


def test_folders_are_searched_in_order(published: Published, mirror: str, tmp_path: Path) -> None:
    models.fetch("v1.1", weights.default_folder(), mirror, published.registry)
    assert weights.search_folders(tmp_path) == [tmp_path, weights.default_folder()]
    assert weights.search_folders(None) == [tmp_path / "cache" / "flashvsr" / "models"]
    assert weights.locate("v1.1", "tiny", tmp_path / "other", registry=published.registry).spec.name == "v1.1"
