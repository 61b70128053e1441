"""What quantization costs in scores: runs of image classification and translation, each evaluated as it is and in 8-bit integers.

    python bench/quantized_scores.py runs/NAME ...

An image classifier is measured in float32, in bf16, in the integers of `zoo.quantize(model, "static")`, by 512 training images,
and in those that `--quantize static` has left in its folder; a translator in float32 and in dynamic int8. Runs stay as they are.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import zoo
from tasks import image_classification, translation
from tasks.data import spread
from tasks.image_evaluation import trained_on
from tasks.image_task import CALIBRATION
from tasks.saved import INTEGERS, program_of


def image_scores(folder: Path, place: Path) -> None:
    from tasks.data.images import load_images

    model, options = zoo.load(folder), trained_on(folder)[0]
    data = load_images(options.data, Path(options.data_root), model.preprocess.image_size, options.skip_bad)
    data.suit(model.preprocess)
    chosen = spread(len(data.train), CALIBRATION)
    zoo.save(zoo.quantize(model, "static", calibration=data.train.batch(chosen)[0]), place / INTEGERS)
    shutil.copy(folder / "options.json", place)
    kinds = [("float32", folder, "fp32"), ("bf16", folder, "bf16"), ("static", place / INTEGERS, "fp32")]
    if (folder / INTEGERS).is_dir():
        kinds.append(("trained with static", folder / INTEGERS, "fp32"))
    for kind, path, precision in kinds:
        print(f"{folder.name}, {kind}:", flush=True)
        image_classification.main(["evaluate", "--init", str(path), "--device", "cpu", "--precision", precision])


def translation_scores(folder: Path, place: Path) -> None:
    shutil.copytree(folder, place / folder.name)
    for kind in ("float32", "dynamic"):
        if kind == "dynamic":
            zoo.save(zoo.quantize(zoo.load(folder), kind), place / folder.name, "best.safetensors")
        print(f"{folder.name}, {kind}:", flush=True)
        translation.main(["evaluate", "--runs_dir", str(place), "--name", folder.name, "--device", "cpu"])


for name in sys.argv[1:]:
    with tempfile.TemporaryDirectory() as place:
        measure = translation_scores if program_of(Path(name)) == "tasks.translation" else image_scores
        measure(Path(name), Path(place))
