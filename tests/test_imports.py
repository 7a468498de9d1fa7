"""Imports point down only: flows -> tasks -> media, storage, core; and the core knows nothing of the world outside."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Package -> our own packages it may import, and outside packages it must not.
OURS = ("flashvsr_core", "tasks", "flows", "deployments")
LAYERS = {
    "flashvsr_core": ({"flashvsr_core"}, {"prefect", "av", "ffmpeg", "fsspec", "s3fs", "huggingface_hub", "requests"}),
    "tasks/media": ({"flashvsr_core", "tasks.media"}, {"prefect", "fsspec", "s3fs"}),
    "tasks/storage": ({"flashvsr_core", "tasks.storage"}, {"prefect", "av", "ffmpeg", "torch"}),
    "tasks/listen": ({"flashvsr_core", "tasks.listen", "tasks.storage"}, {"prefect", "av", "ffmpeg", "torch"}),
    "tasks": ({"flashvsr_core", "tasks"}, {"cyclopts"}),
    "flows": ({"flashvsr_core", "tasks", "flows"}, set()),
}
NO_TORCH = ("config", "segments", "geometry", "errors", "quantities", "registry", "modelfiles")


def layer_of(path: Path) -> str:
    place = path.relative_to(ROOT).as_posix()
    return max((layer for layer in LAYERS if place.startswith(f"{layer}/")), key=len)


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files() -> list[Path]:
    return sorted(path for top in ("flashvsr_core", "tasks", "flows") for path in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    allowed, refused = LAYERS[layer_of(path)]
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in refused, f"{module} is not for this layer"
        if top in OURS:
            assert any(module == own or module.startswith(f"{own}.") for own in allowed), f"{module} points up"


@pytest.mark.parametrize("name", NO_TORCH)
def test_light_modules_import_no_torch(name: str) -> None:
    found = set(imports(ROOT / "flashvsr_core" / f"{name}.py"))
    assert not any(module.split(".")[0] in ("torch", "numpy") for module in found)
    own = {module.split(".")[1] for module in found if module.startswith("flashvsr_core.")}
    assert own <= set(NO_TORCH)


def test_no_print_below_the_command_line() -> None:
    for path in files():
        if "flows/cli" in path.as_posix():
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path
