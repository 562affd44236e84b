"""Score a folder of predictions against a folder of ground truth, in percent; docs/evaluation.md explains the numbers.

    python compute_iou.py ./data/Cityscapes/gtFine/val result/cityscapes
    python compute_iou.py LABELS PREDICTIONS --config configs/camvid_day_to_dusk.toml --json scores.json

Truth is decoded as the configuration's [target] says (default: Cityscapes labelIds), predictions are PNGs of train
ids. A prediction belongs to the truth of the same stem (`_leftImg8bit`, `_gtFine_labelIds` aside); `X_color.png` beside
`X.png` is passed over. Every truth needs a prediction of its size. A class absent from both counts in no mean; truth of
255 counts nowhere. Pairs are counted by --num-workers threads; the scores are the same for any number.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.config import Parser
from utils.flags import Flag, parse, report_files
from utils.launch import launch

FLAGS = (Flag("--num-workers", "run.num_workers", int, "threads that read and count; the scores are the same"),)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report; with --json, --csv and --markdown write it, too."""
    config, options = parse(argv, description=__doc__, section="evaluate", flags=FLAGS, extend=_arguments)
    # Only now: torch takes seconds to import, and whoever mistyped a flag need not wait for it.
    from utils.scoring_run import score_folders

    score_folders(config, options)


def _arguments(parser: Parser) -> None:
    parser.add_argument("gt_dir", help="folder of label files")
    parser.add_argument("pred_dir", help="folder of predictions")
    report_files(parser)


if __name__ == "__main__":
    launch(main)
