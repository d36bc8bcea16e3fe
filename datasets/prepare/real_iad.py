"""Real-IAD: images by class, view and sample, and one JSON file a class that says which is what."""

import json
from pathlib import Path

from datasets.lists import Record, join, record
from datasets.prepare.scan import Found
from utils.errors import UserError

LISTS = ("realiad_jsons", "realiad_jsons/realiad_jsons")  # the archive holds the folder in a folder of its own name
IMAGES = ("realiad_256", "realiad_512", "realiad_1024")  # the smallest there is: the network's input is smaller still


def is_real_iad(root: Path) -> bool:
    return bool(_class_files(root))


def read_real_iad(root: Path) -> Found:
    folder = next((name for name in IMAGES if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(f"{root} holds none of the image folders {', '.join(IMAGES)}; unpack one of them there")
    found = Found(root)
    for path in _class_files(root):
        train, test = _read_class(path, folder)
        found.train += train
        found.test += test
    return found


def _class_files(root: Path) -> list[Path]:
    found = [sorted((root / folder).glob("*.json")) for folder in LISTS]
    return next((paths for paths in found if paths), [])


def _read_class(path: Path, folder: str) -> tuple[list[Record], list[Record]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        normal, prefix = content["meta"]["normal_class"], content["meta"]["prefix"]
        splits = []
        for split in ("train", "test"):
            records = []
            for entry in content[split]:
                image, mask = (entry[key] and join(folder, prefix.strip("/"), entry[key]) for key in ("image_path", "mask_path"))
                records.append(record(image, int(entry["anomaly_class"] != normal), entry["category"], mask))
            splits.append(records)
        return splits[0], splits[1]
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path} is not a class's list of Real-IAD: meta, train and test were expected ({error!r})") from None
