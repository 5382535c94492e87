"""A prepared TFDS folder of generated images, where the real ones are not at hand."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_FEATURES = "tensorflow_datasets.core.features."
Item = tuple[np.ndarray, int, bytes]  # image u8[H, W] or u8[H, W, 3], label, id


def write(root: Path, name: str, *, classes: int, per_class: int, size: int) -> None:
    """Writes ROOT/tfds/NAME as `download_and_prepare` leaves a set of coloured images and labels.

    An image is its class's random picture of 4 x 4 squares under noise; there are a quarter as many
    validation images, and no test images, as in ImageNet. What is there already stays.
    """
    folder = root / "tfds" / name / "1.0.0"
    if (folder / "dataset_info.json").exists():
        return
    generator = np.random.default_rng(0)
    squares = generator.integers(40, 216, (classes, 4, 4, 3))
    pictures = squares.repeat(size // 4, 1).repeat(size // 4, 2)

    def items(number: int) -> Iterator[Item]:
        for label in generator.permutation(number) % classes:
            noisy = pictures[label] + generator.integers(-40, 40, (size, size, 3))
            yield noisy.astype(np.uint8), int(label), b""

    numbers = {"train": classes * per_class, "validation": classes * max(1, per_class // 4)}
    splits = {split: items(number) for split, number in numbers.items()}
    write_set(folder, name.partition("/")[0], splits, (size, size, 3), classes)


def write_set(
    folder: Path,
    title: str,
    splits: Mapping[str, Iterable[Item]],
    image_shape: tuple[int, int, int],
    classes: int,
    features: tuple[str, ...] = ("image", "label"),
) -> None:
    """Writes FOLDER, a set's version: array_record files and what describes them.

    Records hold `image` (as PNG), `label` and `id`; `features` are those that it owns up to.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto.tf_example_generated_pb2 import (
        Example,  # type: ignore[attr-defined]
    )

    folder.mkdir(parents=True, exist_ok=True)
    described = []
    for split, items in splits.items():
        file = folder / f"{title}-{split}.array_record-00000-of-00001"
        writer, number = ArrayRecordWriter(str(file), "group_size:1"), 0
        for image, label, name in items:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "png")
            example = Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(stream.getvalue())
            feature["label"].int64_list.value.append(label)
            feature["id"].bytes_list.value.append(name)
            writer.write(example.SerializeToString())
            number += 1
        writer.close()
        described.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": "1",
                "shardLengths": [str(number)],
            }
        )
    info = {
        "fileFormat": "array_record",
        "name": title,
        "version": "1.0.0",
        "description": "",
        "splits": described,
    }
    owned = {name: value for name, value in _features(image_shape, classes).items()
             if name in features}  # fmt: skip
    whole = {
        "pythonClassName": f"{_FEATURES}features_dict.FeaturesDict",
        "featuresDict": {"features": owned},
    }
    (folder / "features.json").write_text(json.dumps(whole))
    (folder / "dataset_info.json").write_text(json.dumps(info))


def _features(image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    shape = {"dimensions": [str(side) for side in image_shape]}
    return {
        "id": {"pythonClassName": f"{_FEATURES}text_feature.Text", "text": {}},
        "image": {
            "pythonClassName": f"{_FEATURES}image_feature.Image",
            "image": {"shape": shape, "dtype": "uint8"},
        },
        "label": {
            "pythonClassName": f"{_FEATURES}class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(classes)},
        },
    }
