"""`flashvsr presets`: the named deliveries, and what each codec takes."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from flows.cli import options
from tasks.media.codecs import NVENC, SOFTWARE
from tasks.media.delivery import DELIVERIES
from tasks.media.images import FORMATS


def presets(*, as_json: options.AsJson = False) -> None:
    """List deliveries (--delivery NAME) and codecs (--codec NAME) with their containers and pixel formats; images."""
    if as_json:
        codecs = {
            name: {"containers": spec.containers, "pix_fmts": spec.pix_fmts, "args": sorted(spec.args)}
            for name, spec in SOFTWARE.items()
        }
        images = {name: {"pix_fmts": [pix_fmt for pix_fmt, _ in form.pix_fmts]} for name, form in FORMATS.items()}
        deliveries = {name: asdict(delivery) for name, delivery in DELIVERIES.items()}
        print(json.dumps({"deliveries": deliveries, "codecs": codecs, "images": images}))
        return
    deliveries_table = Table(title="Deliveries: --delivery NAME (other options win)", box=None, title_justify="left")
    deliveries_table.add_column("name")
    deliveries_table.add_column("output")
    deliveries_table.add_column("what it is")
    for name, delivery in DELIVERIES.items():
        deliveries_table.add_row(name, f".{delivery.container}", delivery.about)
    codecs_table = Table(title="Codecs: --codec NAME", box=None, title_justify="left")
    for heading in ("name", "outputs", "crf", "nvenc", "pixel formats"):
        codecs_table.add_column(heading, overflow="fold")
    for name, spec in SOFTWARE.items():
        outputs = " ".join(f".{container}" for container in spec.containers)
        crf = f"0 to {spec.crf[1]} ({spec.crf[0]})" if spec.crf else "-"
        codecs_table.add_row(name, outputs, crf, "yes" if name in NVENC else "-", " ".join(spec.pix_fmts))
    images_table = Table(title="Images: by the name of OUTPUT, or --container KIND", box=None, title_justify="left")
    for heading in ("name", "pixel formats"):
        images_table.add_column(heading, overflow="fold")
    for name, form in FORMATS.items():
        images_table.add_row(name, " ".join(pix_fmt for pix_fmt, _ in form.pix_fmts))
    console = Console()
    console.print(deliveries_table)
    console.print()
    console.print(codecs_table)
    console.print()
    console.print(images_table)
