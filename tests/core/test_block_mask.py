"""Block selection in Triton against the reference: the very same blocks, threshold and ties included."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from flashvsr_core.kernels.block_attention import BlockList, attend_torch
from flashvsr_core.kernels.block_mask import local_window, select_blocks
from tests.core import triton_here
from tests.core.formula import draw, relative_error

DEVICE = triton_here.DEVICE


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    return triton_here.module("block_mask_triton")


def pooled(batch: int, heads: int, queries: int, keys: int, dim: int) -> tuple[Tensor, Tensor]:
    q, k = (draw(f"mask.{n}{heads}", (batch, heads, count, dim)) for n, count in (("q", queries), ("k", keys)))
    return q.to(DEVICE), k.to(DEVICE)


@pytest.mark.parametrize(
    ("batch", "heads", "grid", "slices", "past", "dim"),
    [(1, 1, (1, 1), 1, 0, 16), (1, 2, (2, 3), 1, 3, 128), (2, 3, (3, 5), 3, 0, 32), (1, 12, (1, 7), 1, 1, 64),
     (1, 1, (6, 11), 1, 3, 128)],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.0, 0.1, 0.45, 0.9, 2.0])
@pytest.mark.parametrize("span", [3, 11])
def test_selects_the_same_blocks(
    fused: ModuleType, batch: int, heads: int, grid: tuple[int, int], slices: int, past: int, dim: int,
    share: float, span: int,
) -> None:  # fmt: skip
    n = grid[0] * grid[1]
    q, k = pooled(batch, heads, n * slices, n * (slices + past), dim)
    local = local_window(*grid, span).to(DEVICE)
    topk = int(share * n * k.shape[2]) - 1
    expected = select_blocks(q, k, local, topk)
    found = fused.select_blocks(q, k, local, topk)
    counts = found.counts.unflatten(2, (-1, n)).sum(-1)
    assert torch.equal(counts.long(), expected.unflatten(2, (-1, n)).sum((-1, -2)))
    assert torch.equal(found.mask(), expected)
    for row, count in zip(found.indices.flatten(0, 2), found.counts.flatten()):
        assert row[:count].tolist() == sorted(row[:count].tolist())


def test_ties_at_the_threshold_are_not_selected(fused: ModuleType) -> None:
    q, k = torch.ones(1, 1, 4, 16, device=DEVICE), torch.ones(1, 1, 8, 16, device=DEVICE)
    local = local_window(2, 2, 11).to(DEVICE)
    assert not fused.select_blocks(q, k, local, 5).counts.any()


def test_keys_may_be_the_start_of_a_longer_buffer(fused: ModuleType) -> None:
    q, k = pooled(1, 3, 4, 12, 32)
    local = local_window(2, 2, 3).to(DEVICE)
    found = fused.select_blocks(q, k[:, :, :8], local, 9)
    assert torch.equal(found.mask(), select_blocks(q, k[:, :, :8], local, 9))


def test_a_list_attends_as_its_mask() -> None:
    counts = torch.tensor([[[2, 0]]], dtype=torch.int32)
    blocks = BlockList(counts, torch.tensor([[[[0, 2, 7], [9, 9, 9]]]], dtype=torch.int32))  # the rest is not set
    q, k, v = (draw(f"list.{n}", (1, 1, w, 128, 16)) for n, w in (("q", 2), ("k", 3), ("v", 3)))
    mask = torch.tensor([[[[True, False, True], [False, False, False]]]])
    assert torch.equal(blocks.mask(), mask)
    assert relative_error(attend_torch(q, k, v, blocks), attend_torch(q, k, v, mask)) == 0
