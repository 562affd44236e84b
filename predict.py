"""Predict any picture: images, folders, patterns, videos.

    python predict.py photo.jpg --restore-from runs/camvid_day_to_dusk/step2 --save out
    python predict.py photos 'more/**/*.png' drive.mp4 --restore-from GTA5_Best.pth --save out --write overlay,labels
    python predict.py city.tif --restore-from runs/inria_to_massbuildings/step2 --save out --scale 1

Our weights bring classes, colours, input statistics and input size along; for others the configuration does (--config;
for 19 classes the default one will do). Writes a folder per kind, with files named as the input: overlay, labels (train
ids), colour, confidence (0..255), label_ids (official ids); of a video the overlay as MP4, with --frames every frame.
Goes on past what cannot be read, names it at the end and leaves with 1 then. docs/prediction.md has the details.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.config import Parser
from utils.flags import PICTURES, parse, width_height
from utils.launch import launch
from utils.products import KINDS
from utils.recorded import recorded_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Predict; exit code 1 where an input could not be."""
    config, options = parse(
        argv,
        description=__doc__,
        section="evaluate",
        flags=PICTURES,
        extend=_arguments,
        recorded=recorded_settings,
    )
    # Only now: torch takes seconds to import, and whoever mistyped a flag need not wait for it.
    from utils.pictures_run import predict_pictures

    predict_pictures(config, options)


def _arguments(parser: Parser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder, quoted pattern or video")
    kinds = ",".join(KINDS)
    parser.add_argument("--write", metavar="KIND,...", help=f"what to write of {kinds} (default: all there are)")
    parser.add_argument("--frames", action="store_true", help="write every frame of a video as PNGs, too")
    parser.add_argument("--opacity", type=float, default=0.5, metavar="X", help="of the overlay's colours (0.5)")
    parser.add_argument(
        "--size",
        type=width_height,
        metavar="W,H",
        help="what the network sees of a picture (default: as many pixels as in training)",
    )
    parser.add_argument("--scale", type=float, metavar="X", help="instead: a multiple of its own size; 1: as it is")
    parser.add_argument(
        "--tile",
        type=width_height,
        metavar="W,H",
        help="size of tiles (default: the training size, beyond 4 million pixels)",
    )
    parser.add_argument("--overlap", type=float, default=0.25, metavar="X", help="of tiles, share of a side (0.25)")


if __name__ == "__main__":
    launch(main)
