"""Pseudo labels: stage 1's own predictions on target train, where it is confident enough.

    python Generate_Pseudo_Label.py                                           from runs/gta5_to_cityscapes/step1
    python Generate_Pseudo_Label.py --restore-from snapshots/GTA5_200000.pth --save data/pseudo

Per class the threshold is the median confidence, at most 0.9, so about half of a class's pixels or more are kept.
Memory stays flat: predictions wait on disk, confidences in one histogram per class. Writes one 8-bit PNG of train ids
per image (255: no label), several at a time, and `thresholds.json` with threshold and coverage per class. Next:
train_step2.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.flags import PREDICTION, parse
from utils.launch import launch


def main(argv: Sequence[str] | None = None) -> None:
    """Predict, find the thresholds, write the PNGs."""
    config, options = parse(argv, description=__doc__, section="pseudo_label", flags=PREDICTION)
    # Only now: torch takes seconds to import, and whoever mistyped a flag need not wait for it.
    from utils.pseudo_label_run import generate

    generate(config, options)


if __name__ == "__main__":
    launch(main)
