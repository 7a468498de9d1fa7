"""How pictures leave the core as Y, U and V planes. Imports no torch, so that media code can name it cheaply."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Planes = tuple[np.ndarray, ...]
"""Y, U and V, and A where there is transparency, each T h w, uint8 or uint16 with `depth` bits in the low end."""


@dataclass(frozen=True)
class YuvLayout:
    """How RGB becomes Y, U and V planes."""

    subsampling: Literal["420", "422", "444"]
    depth: Literal[8, 10, 12]
    matrix: Literal["bt601", "bt709", "bt2020"]
    full_range: bool = False
