"""Predict the target's validation images: one PNG of train ids and one in colour per image.

    python evaluate_cityscapes.py                                             from runs/gta5_to_cityscapes/step2
    python evaluate_cityscapes.py --restore-from ./pretrained/GTA2Cityscapes/GTA5_Best.pth

Any weights of this family are recognised: our checkpoints and run folders, released DeepLab-v2, VGG-16 and Oracle
files. Labels are not read. Writes `<image>.png` and `<image>_color.png` at the images' own size. Next: compute_iou.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from utils import build
from utils.checkpoint import atomic_write
from utils.config import Config
from utils.flags import PREDICTION, Options, next_command, parse
from utils.inference import label_map
from utils.log import progress, say, write_json
from utils.runtime import launch


def main(argv: Sequence[str] | None = None) -> None:
    """Predict and write PNGs."""
    config, options = parse(argv, description=__doc__, section="evaluate", flags=PREDICTION)
    evaluate(config, options)


def evaluate(config: Config, options: Options) -> None:
    """Write the predictions that the `[evaluate]` section describes."""
    settings, folder = config.evaluate, Path(config.evaluate.save)
    classes, weights, total, stream = build.prediction_run(
        config, options, restore_from=settings.restore_from, split=settings.split
    )
    for item in progress(stream, total=total, description="evaluate", unit="image"):
        labels = label_map(item.logits, item.label.shape[-2:]).cpu().numpy()
        stem = PurePosixPath(item.name).stem
        for name, image in ((f"{stem}.png", Image.fromarray(labels)), (f"{stem}_color.png", classes.colorize(labels))):
            with atomic_write(folder / name) as temporary:
                image.save(temporary)

    if options.json:
        result = {"restore_from": str(weights.path), "sha256": weights.sha256, "images": total}
        write_json(options.json, result | {"save": str(folder)})
    truth = build.corpus(config, "target", classes).label_folder(settings.split)
    say(f"{total} predictions in {folder}")
    scoring = next_command(options, ["compute_iou.py", str(truth), str(folder)], flags=(), section="evaluate", hands={})
    say(f"next: {scoring}")


if __name__ == "__main__":
    launch(main, build.MISTAKES)
