"""Published files: recognised by content, fitted to one model, loaded, run; and every reason to refuse them."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.modelfiles import locate, recognise, sha256_of
from flashvsr_core.models.dit import Dit
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.models.wan_vae import WanVaeDecoder
from flashvsr_core.registry import MODELS, PARTS, PUBLISHED, Role
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import UNUSED, embedded_weights, load_weights, read_tensors
from tests.core.published import DIT, Published, publish

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "checkpoint_keys.json").read_text())
VERSIONS = ("v1.0", "v1.1")
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture
def folder(published: Published, tmp_path: Path) -> Path:
    """A copy of v1.1 in the published layout with its prompt, to be spoiled."""
    shutil.copytree(published.folders["v1.1"], tmp_path / "models")
    shutil.copy(published.prompt, tmp_path / "models")
    return tmp_path / "models"


def upscaled(published: Published, model: str, mode: str, *folders: Path, **options: object) -> np.ndarray:
    files = locate(model, mode, folders, published.registry, **options)  # type: ignore[arg-type]
    params = UpscaleParams(mode=mode, scale=2, preroll=0, precision="fp32")  # type: ignore[arg-type]
    return np.concatenate(list(Upscaler.load(load_weights(files, mode), params).stream(iter([FRAMES]))))  # type: ignore[arg-type]


def refusal(published: Published, *folders: Path, model: str = "v1.1", mode: str = "tiny") -> str:
    with pytest.raises(UserError) as caught:
        locate(model, mode, folders, published.registry)
    return str(caught.value)


@pytest.mark.parametrize("model", VERSIONS)
def test_full_size_keys_and_shapes_are_the_published_ones(model: str) -> None:
    spec = MODELS[model]
    assert spec.vae is not None
    with torch.device("meta"):
        modules = {
            "diffusion_pytorch_model_streaming_dmd.safetensors": Dit(spec.dit),
            "LQ_proj_in.ckpt": LqProj(spec.lq, spec.dit.dim),
            "TCDecoder.ckpt": TcDecoder(spec.tcdecoder),
            "Wan2.1_VAE.pth": WanVaeDecoder(spec.vae),
        }
    for name, module in modules.items():
        unused = UNUSED["vae"] if name == "Wan2.1_VAE.pth" else ()
        expected = {key: shape for key, shape in KEYS[name].items() if not key.startswith(unused or ("-",))}
        assert {key: list(value.shape) for key, value in module.state_dict().items()} == expected


def test_registry_is_whole() -> None:
    digests = [file.sha256 for file in PUBLISHED.files]
    assert len(set(digests)) == len(digests)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)
    for model in VERSIONS:
        for role in {role for parts in PARTS.values() for role in parts}:
            assert PUBLISHED.files_of(model, role)


def test_both_versions_in_the_published_layout_load_and_run_in_both_modes(published: Published) -> None:
    folders = (*published.folders.values(), published.prompt.parent)
    outs = [upscaled(published, model, mode, *folders) for model in VERSIONS for mode in PARTS]
    assert all(out.shape == (3, 32, 48, 3) for out in outs)
    assert len({out.tobytes() for out in outs}) == 4


def test_a_comfyui_folder_runs_too(published: Published) -> None:
    out = upscaled(published, "v1.1", "tiny", published.comfy)
    assert np.array_equal(out, upscaled(published, "v1.1", "tiny", published.folders["v1.1"], published.prompt.parent))
    assert set(locate("v1.1", "full", [published.comfy], published.registry).digests) == set(PARTS["full"])
    assert "lacks LQ_proj_in.ckpt" in refusal(published, published.comfy, model="v1.0")


def test_names_do_not_matter(published: Published, folder: Path) -> None:
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{i}{path.suffix}")
    files = locate("v1.1", "tiny", [folder], published.registry)
    assert {role: sha256_of(path) for role, path in files.paths.items()} == files.digests
    assert files.digests["lq_proj"] == published.spec("lq_proj", "v1.1").sha256


def test_only_what_the_mode_reads_is_needed(published: Published, folder: Path) -> None:
    (folder / "Wan2.1_VAE.pth").unlink()
    assert set(locate("v1.1", "tiny", [folder], published.registry).digests) == set(PARTS["tiny"])
    assert "lacks Wan2.1_VAE.pth" in refusal(published, folder, mode="full")


def test_files_are_hashed_once_and_only_if_they_may_fit(published: Published, folder: Path) -> None:
    (folder / "huge.safetensors").write_bytes(bytes(100))
    hashed: list[str] = []

    def digest(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    locate("v1.1", "tiny", [folder], published.registry, digest=digest)
    assert sorted(hashed) == sorted(set(hashed))
    assert DIT in hashed
    assert "huge.safetensors" not in hashed


def test_missing_files_name_size_places_and_command(published: Published, folder: Path, tmp_path: Path) -> None:
    (folder / "LQ_proj_in.ckpt").unlink()
    message = refusal(published, tmp_path / "other", folder)
    size = published.spec("lq_proj", "v1.1").bytes
    assert f"model v1.1 lacks LQ_proj_in.ckpt (LQ projection, {size:,} bytes)" in message
    assert f"looked in {tmp_path / 'other'}, {folder}" in message
    assert f"flashvsr models fetch v1.1 --dir {tmp_path / 'other'}" in message


def test_a_mixed_pair_is_refused(published: Published, folder: Path) -> None:
    shutil.copy(published.path("lq_proj", "v1.0"), folder / "LQ_proj_in.ckpt")
    message = refusal(published, folder)
    assert f"found {folder / 'LQ_proj_in.ckpt'}, which is the LQ projection of v1.0" in message
    assert "--allow-unknown-weights --lq-projection buffer|causal" in message


def test_a_truncated_file_is_refused(published: Published, folder: Path) -> None:
    path = folder / "LQ_proj_in.ckpt"
    spec = published.spec("lq_proj", "v1.1")
    os.truncate(path, 1000)
    message = refusal(published, folder)
    assert f"{path} with 1,000 bytes, sha256 {sha256_of(path)} instead of {spec.bytes:,} bytes, sha256" in message
    assert spec.sha256 in message
    assert "truncated" in message


def test_an_altered_file_is_refused(published: Published, folder: Path) -> None:
    data = bytearray((folder / DIT).read_bytes())
    data[-1] ^= 1
    (folder / DIT).write_bytes(data)
    message = refusal(published, folder)
    assert sha256_of(folder / DIT) in message
    assert "altered or not a published file" in message


def test_unknown_weights_can_be_allowed_with_a_projection(published: Published, folder: Path) -> None:
    tensors = load_file(folder / DIT)
    save_file({key: value * 1.01 for key, value in tensors.items()}, folder / DIT)
    outs = {}
    for kind in ("buffer", "causal"):
        files = locate("v1.1", "tiny", [folder], published.registry, unknown=kind)  # type: ignore[arg-type]
        assert files.spec.lq.kind == kind
        assert files.digests["lq_projection"] == kind
        assert files.digests["dit"] == sha256_of(folder / DIT)
        outs[kind] = upscaled(published, "v1.1", "tiny", folder, unknown=kind)
    assert not np.array_equal(outs["buffer"], outs["causal"])


def test_the_projection_of_known_weights_cannot_be_changed(published: Published, folder: Path) -> None:
    assert "lq_projection" not in locate("v1.1", "tiny", [folder], published.registry, unknown="causal").digests
    with pytest.raises(UserError, match="made for causal"):
        locate("v1.1", "tiny", [folder], published.registry, unknown="buffer")


def test_unknown_weights_must_still_be_there(published: Published, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks"):
        locate("v1.1", "tiny", [tmp_path], published.registry, unknown="causal")


def test_models_without_published_weights(published: Published, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'nano' has no published weights; choose one of"):
        locate("nano", "tiny", [tmp_path])
    with pytest.raises(UserError, match="no mode 'full'"):
        Upscaler.load(embedded_weights(), UpscaleParams(mode="full"))


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(published: Published, folder: Path, zipped: bool) -> None:
    path, trace = folder / "LQ_proj_in.ckpt", folder / "trace"
    torch.save({"conv1.weight": _Evil(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="refused and nothing in it was run"):
        upscaled(published, "v1.1", "tiny", folder, unknown="causal")
    assert not trace.exists()


def test_old_pickles_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5.0)}
    torch.save(tensors, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / "old.ckpt")["a"], tensors["a"])


@pytest.mark.parametrize("name", ["x.ckpt", "x.pth", "x.safetensors"])
@pytest.mark.parametrize("data", [b"", b"not weights", b"PK\x03\x04" + bytes(50)])
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        read_tensors(tmp_path / name)


def test_a_pickle_of_something_else_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="no state dict"):
        read_tensors(tmp_path / "x.ckpt")


def spoil(published: Published, folder: Path, role: Role, change: Mapping[str, torch.Tensor | None]) -> None:
    """Change tensors of one file; its digest becomes unknown."""
    path = folder / published.spec(role, "v1.1").name
    tensors = dict(read_tensors(path)) | change
    kept = {key: value for key, value in tensors.items() if value is not None}
    torch.save(kept, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)  # never written in place: it is memory-mapped


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named(published: Published, folder: Path, value: float) -> None:
    spoil(published, folder, "lq_proj", {"norm1.gamma": torch.full((8, 1, 1, 1), value)})
    with pytest.raises(UserError, match=r"NaN or infinity in lq_proj\.norm1\.gamma"):
        upscaled(published, "v1.1", "tiny", folder, unknown="causal")


def test_a_prompt_read_as_nan_is_refused(published: Published, folder: Path) -> None:
    torch.save(torch.full((1, 4, 16), float("nan"), dtype=torch.bfloat16), folder / "posi_prompt.pth")
    with pytest.raises(UserError, match=r"prompt\.prompt"):
        upscaled(published, "v1.1", "tiny", folder, unknown="causal")
    torch.save(torch.zeros(1, 5, 16), folder / "posi_prompt.pth")
    with pytest.raises(UserError, match=r"\(1, 5, 16\), not a tensor \(1, 4, 16\)"):
        upscaled(published, "v1.1", "tiny", folder, unknown="causal")


def test_weights_beyond_fp16_are_not_called_damaged(published: Published, folder: Path) -> None:
    spoil(published, folder, "lq_proj", {"conv1.bias": torch.full((8,), 1e6)})
    weights = load_weights(locate("v1.1", "tiny", [folder], published.registry, unknown="causal"), "tiny")
    with pytest.raises(UserError, match=r"conv1\.bias do not fit into torch\.float16"):
        Upscaler.load(weights, UpscaleParams(precision="fp16"))


@pytest.mark.parametrize("change", [{"conv1.bias": None}, {"extra": torch.zeros(1)}, {"conv1.bias": torch.zeros(9)}])
def test_weights_of_another_shape_are_refused(
    published: Published, folder: Path, change: Mapping[str, torch.Tensor | None]
) -> None:
    spoil(published, folder, "lq_proj", change)
    with pytest.raises(UserError, match=f"weights of lq_proj do not fit the model: 1 of 8 .*{next(iter(change))}"):
        upscaled(published, "v1.1", "tiny", folder, unknown="causal")


def test_recognition_follows_the_content_of_conversions(published: Published, folder: Path) -> None:
    """A manifest alone makes nothing known: the header must agree, and the source must be published."""
    spec = published.spec("lq_proj", "v1.1")
    path = folder / "x.safetensors"
    save_file(read_tensors(folder / "LQ_proj_in.ckpt"), path, {"source_sha256": spec.sha256})
    assert recognise(path, published.registry).spec is None
    (folder / "converted.json").write_text(json.dumps({sha256_of(path): spec.sha256}))
    found = recognise(path, published.registry)
    assert found.spec == spec
    assert found.content == spec.sha256
    registry = replace(published.registry, files=tuple(f for f in published.registry.files if f != spec))
    assert recognise(path, registry).spec is None
    save_file(read_tensors(folder / "LQ_proj_in.ckpt"), path, {"source_sha256": "0" * 64})
    (folder / "converted.json").write_text(json.dumps({sha256_of(path): spec.sha256}))
    assert recognise(path, published.registry).spec is None
    (folder / "converted.json").write_text("{")
    with pytest.raises(UserError, match=r"converted\.json is damaged"):
        recognise(path, published.registry)


def test_unknown_weights_and_projection_are_asked_for_together() -> None:
    assert UpscaleParams().unknown_weights == "refuse"
    assert UpscaleParams(allow_unknown_weights=True, lq_projection="buffer").unknown_weights == "buffer"
    for params in ({"allow_unknown_weights": True}, {"lq_projection": "causal"}):
        with pytest.raises(UserError, match="go together"):
            UpscaleParams(**params)  # type: ignore[arg-type]
