"""A prepared TFDS folder of generated images, where the real ones are not at hand."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

_FEATURES = "tensorflow_datasets.core.features."


def write(root: Path, name: str, *, classes: int, per_class: int, size: int) -> None:
    """Writes ROOT/tfds/NAME as `download_and_prepare` leaves a set of coloured images and labels.

    An image is its class's random picture of 4 x 4 squares under noise; there are a quarter as many
    validation images, and no test images, as in ImageNet. What is there already stays.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto.tf_example_generated_pb2 import (
        Example,  # type: ignore[attr-defined]
    )

    folder = root / "tfds" / name / "1.0.0"
    if (folder / "dataset_info.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    squares = generator.integers(40, 216, (classes, 4, 4, 3))
    pictures = squares.repeat(size // 4, 1).repeat(size // 4, 2)
    title = name.partition("/")[0]
    numbers = {"train": classes * per_class, "validation": classes * max(1, per_class // 4)}
    for split, number in numbers.items():
        file = folder / f"{title}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for label in generator.permutation(number) % classes:
            noisy = pictures[label] + generator.integers(-40, 40, (size, size, 3))
            stream = io.BytesIO()
            Image.fromarray(noisy.astype(np.uint8)).save(stream, "png")
            example = Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(stream.getvalue())
            feature["label"].int64_list.value.append(int(label))
            writer.write(example.SerializeToString())
        writer.close()
    shape = {"dimensions": [str(size), str(size), "3"]}
    features = {
        "image": {
            "pythonClassName": f"{_FEATURES}image_feature.Image",
            "image": {"shape": shape, "dtype": "uint8"},
        },
        "label": {
            "pythonClassName": f"{_FEATURES}class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(classes)},
        },
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{_FEATURES}features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits = [
        {
            "name": split,
            "filepathTemplate": template,
            "numBytes": "1",
            "shardLengths": [str(number)],
        }
        for split, number in numbers.items()
    ]
    info = {
        "fileFormat": "array_record",
        "name": title,
        "version": "1.0.0",
        "description": "",
        "splits": splits,
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
