"""`flashvsr presets`: the named deliveries, and what each codec takes."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from flows.cli import options
from tasks.media.codecs import NVENC, SOFTWARE
from tasks.media.delivery import DELIVERIES


def presets(*, as_json: options.AsJson = False) -> None:
    """List deliveries (--delivery NAME) and codecs (--codec NAME) with their containers and pixel formats."""
    if as_json:
        codecs = {
            name: {"containers": spec.containers, "pix_fmts": spec.pix_fmts, "args": sorted(spec.args)}
            for name, spec in SOFTWARE.items()
        }
        print(json.dumps({"deliveries": {name: asdict(d) for name, d in DELIVERIES.items()}, "codecs": codecs}))
        return
    deliveries = Table(title="Deliveries: --delivery NAME (other options win)", box=None, title_justify="left")
    deliveries.add_column("name")
    deliveries.add_column("output")
    deliveries.add_column("what it is")
    for name, delivery in DELIVERIES.items():
        deliveries.add_row(name, f".{delivery.container}", delivery.about)
    codecs_table = Table(title="Codecs: --codec NAME", box=None, title_justify="left")
    for heading in ("name", "outputs", "crf", "nvenc", "pixel formats"):
        codecs_table.add_column(heading, overflow="fold")
    for name, spec in SOFTWARE.items():
        outputs = " ".join(f".{container}" for container in spec.containers)
        crf = f"0 to {spec.crf[1]} ({spec.crf[0]})" if spec.crf else "-"
        codecs_table.add_row(name, outputs, crf, "yes" if name in NVENC else "-", " ".join(spec.pix_fmts))
    console = Console()
    console.print(deliveries)
    console.print()
    console.print(codecs_table)
