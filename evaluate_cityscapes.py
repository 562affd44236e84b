"""Predict the target's validation images: PNGs of train ids, in colour and of official label ids, or scores at once.

    python evaluate_cityscapes.py                                             from runs/gta5_to_cityscapes/step2
    python evaluate_cityscapes.py --restore-from ./pretrained/GTA2Cityscapes/GTA5_Best.pth
    python evaluate_cityscapes.py --in-memory --json scores.json              score, write no PNGs
    python evaluate_cityscapes.py --set test --label-ids result/server        for the Cityscapes server

Any weights of this family are recognised: our checkpoints and run folders, released DeepLab-v2, VGG-16 and Oracle
files. Writes `<image>.png` and `<image>_color.png` at the images' own size and reads no labels; next: compute_iou.py.
With --in-memory the predictions are scored as they come, calibration included, and PNGs are written where --save is
given, too. --scales 0.75,1,1.25 --flip averages several views of each image. Without --config our own weights bring
the configuration that they were trained with. docs/evaluation.md explains the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.config import Parser
from utils.flags import EVALUATION, parse, report_files
from utils.launch import launch
from utils.recorded import recorded_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Predict; write PNGs, or score, or both."""
    config, options = parse(
        argv,
        description=__doc__,
        section="evaluate",
        flags=EVALUATION,
        extend=_arguments,
        recorded=recorded_settings,
    )
    # Only now: torch takes seconds to import, and whoever mistyped a flag need not wait for it.
    from utils.evaluation_run import evaluate

    evaluate(config, options)


def _arguments(parser: Parser) -> None:
    parser.add_argument("--in-memory", action="store_true", help="score at once; PNGs only where --save is given")
    report_files(parser)


if __name__ == "__main__":
    launch(main)
