"""A target set's worth of pseudo labels from random logits: time beyond the network, and the memory it takes.

python -m benchmarks.stream --images 2975     about 3 minutes on one processor, 5 GB of disk while it runs
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.origin import origin
from benchmarks.pseudo_labels import follow
from utils.config import Parser
from utils.console import say
from utils.flags import at_least_one, output_file
from utils.json_files import write_json
from utils.launch import launch


def main(argv: Sequence[str] | None = None) -> None:
    """Follow the stream and say what it took."""
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=at_least_one, default=300, help="length of the stream")
    parser.add_argument("--folder", type=_folder, default=".", help="where cache and PNGs go, and vanish again (.)")
    parser.add_argument("--threads", type=at_least_one, default=1, help="processors that torch may use")
    parser.add_argument("--json", type=output_file, metavar="FILE", default="", help="also write the figures there")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    made = origin("benchmarks.stream", argv, torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix=".benchmark-") as folder:
        found = follow(arguments.images, Path(folder))
    say(
        f"{arguments.images} images: {found['wall_ms']:.1f} ms an image, {found['processor_ms']:.1f} ms of processor "
        f"time; peak {found['peak_mb']:.0f} MiB, of which {found['before_mb']:.0f} before it began"
    )
    if arguments.json:
        write_json(arguments.json, {**made, "images": arguments.images, **found})


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return text


if __name__ == "__main__":
    launch(main)
