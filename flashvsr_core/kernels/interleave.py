"""Enlargement by 2 from its four phases: pixels of even and odd rows and columns, which come as channels."""

from einops import rearrange
from torch import Tensor


def interleave(x: Tensor, stride: int) -> Tensor:
    """t (s p q c) h+1 w+1 -> (t s) c 2h 2w, channels last; p, q: row and column of 2x2. A time step becomes `stride`.

    Phase p of row i lies in row i + p, and so it is with columns: a convolution of 2x2 pixels with padding 1 leaves
    what it makes of rows i - 1 and i in row i.
    """
    _, _, height, width = x.shape
    phases = rearrange(x, "t (s p q c) h w -> p q (t s) c h w", s=stride, p=2, q=2)
    out = x.new_empty(phases.shape[2], 2 * height - 2, 2 * width - 2, phases.shape[3]).permute(0, 3, 1, 2)
    for p in range(2):
        for q in range(2):
            out[:, :, p::2, q::2] = phases[p, q, :, :, p : p + height - 1, q : q + width - 1]
    return out
