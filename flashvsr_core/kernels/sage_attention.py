"""Attention `sage`: queries and keys are quantised by the library SageAttention 1.x, blocks walked by our kernel.

The library's own attention is dense, and dense attention is not what the model was trained with.
"""

import torch
from einops import rearrange, repeat
from sageattention.quant_per_block import per_block_int8
from torch import Tensor

from flashvsr_core.kernels.block_attention import Blocks
from flashvsr_core.kernels.block_attention_triton import WINDOW
from flashvsr_core.kernels.int8_attention import Quantised, common
from flashvsr_core.kernels.int8_attention_triton import attend_quantised, check
from flashvsr_core.kernels.token_ops_triton import on


def attend_sage(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
    """As `int8_attention_triton.attend_int8`, with one scale per window of queries too."""
    check("sage", q)
    # The library's own entry takes the mean off the caller's keys in place; these are remembered by the next steps.
    smooth = (k - common(k)[:, :, None, None].to(k.dtype)).flatten(2, 3)
    with on(q):
        values = per_block_int8(q.flatten(2, 3), smooth, BLKQ=WINDOW, BLKK=WINDOW, sm_scale=1.0)
    queries, keys = (_windows(values[i], values[i + 1]) for i in (0, 2))
    # The library multiplies queries with log2(e), for its own exponentials; here that is the kernel's part.
    return attend_quantised(queries._replace(scales=queries.scales / _SAGE_LOG2_E), keys, v, blocks)


_SAGE_LOG2_E = 1.44269504


def _windows(values: Tensor, scales: Tensor) -> Quantised:
    # A window of zeros has scale 0 and, divided by it, no values to speak of.
    values = rearrange(values, "b h (w t) d -> b h w t d", t=WINDOW).contiguous()
    return Quantised(values, repeat(scales, "b h w 1 -> b h w t", t=WINDOW).contiguous().to(torch.float32))
