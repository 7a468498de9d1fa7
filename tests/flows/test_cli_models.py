"""`flashvsr models` as a user meets it."""

import json
import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from flashvsr_core.errors import UserError
from flashvsr_core.registry import PUBLISHED
from flows.cli import models
from tests.core.published import Published, publish


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def small(published: Published, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "registry", published.registry)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FLASHVSR_MODELS", raising=False)


def call(*arguments: object) -> str:
    """Run a command and return what it printed; errors meant for the main command's one line are raised."""
    with redirect_stdout(StringIO()) as printed:
        models.app([str(a) for a in arguments], exit_on_error=False, result_action="return_value")
    return printed.getvalue()


def last_json(printed: str) -> Any:
    return json.loads(printed.strip().splitlines()[-1])


def mirror(published: Published) -> Path:
    return published.prompt.parents[3]


def test_fetch_verify_convert_list(published: Published, tmp_path: Path) -> None:
    place = tmp_path / "models"
    rows = last_json(call("list", "--dir", place, "--json"))
    assert [(row["model"], row["path"]) for row in rows] == [(m, None) for m in ("v1.1", "v1.0") for _ in range(5)]
    fetched = last_json(call("fetch", "v1.1", "--dir", place, "--from", mirror(published), "--json"))
    assert {row["action"] for row in fetched} == {"fetched"}
    assert all(Path(row["path"]).is_file() for row in fetched)
    again = call("fetch", "v1.1", "--dir", place, "--from", mirror(published))
    assert again.count("present: ") == 5
    assert "lq_proj of v1.1" in call("verify", "v1.1", "--dir", place)
    assert last_json(call("verify", "--dir", place, "--json"))["problems"] == []
    assert call("convert", "v1.1", "--dir", place).count("converted: ") == 4
    assert call("verify", "v1.1", "--dir", place).count(", converted") == 4
    listed = call("list", "--dir", place)
    assert f"{place / 'v1.1' / 'LQ_proj_in.safetensors'}" in listed
    assert "v1.0  lq_proj         size not known  not here (LQ_proj_in.ckpt)" in listed


def test_places_in_their_order(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched_to(*arguments: object) -> Path:
        rows = last_json(call("fetch", "v1.1", "--from", mirror(published), "--json", *arguments))
        return Path(rows[0]["path"]).parents[1]

    assert fetched_to() == tmp_path / "cache" / "flashvsr" / "models"
    monkeypatch.setenv("FLASHVSR_MODELS", str(tmp_path / "variable"))
    assert fetched_to() == tmp_path / "variable"
    assert fetched_to("--dir", tmp_path / "option") == tmp_path / "option"


def test_refusals_end_with_status_2(published: Published, tmp_path: Path) -> None:
    place = tmp_path / "models"
    call("fetch", "v1.1", "--dir", place, "--from", mirror(published))
    os.truncate(place / "v1.1" / "LQ_proj_in.ckpt", 1000)
    for arguments, expected in (
        (("verify", "v1.1", "--dir", place), "1,000 bytes, sha256 .* instead of .*: truncated"),
        (("verify", "--dir", tmp_path / "empty"), "holds no weights; fetch some: flashvsr models fetch v1.1 --dir"),
        (("convert", "v1.0", "--dir", tmp_path / "empty"), "run: flashvsr models fetch v1.0 --dir"),
        (("fetch", "nano", "--dir", place), "'nano' has no published weights; choose one of v1.1, v1.0"),
        (("fetch", "v1.1", "--dir", place, "--from", mirror(published)), "move it away"),
        (("fetch", "v1.1", "--dir", tmp_path / "new", "--from", tmp_path), "has no diffusion_pytorch_model"),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            call(*arguments)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)


def test_users_get_the_published_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the environment replaces it."""
    monkeypatch.undo()
    assert models.registry is PUBLISHED
