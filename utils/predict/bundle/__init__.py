"""A folder that scores photographs without this repository: the model, one Python file, and the packages that it needs."""

import os
import shutil
from pathlib import Path

import numpy
import PIL

from utils.errors import UserError
from utils.files import check_writable
from utils.predict.onnx_engine import import_package

SCRIPT = Path(__file__).with_name("anomaly.py")
FILES = (SCRIPT.name, "requirements.txt", "model.onnx")


def check_bundle_folder(folder: str | Path) -> None:
    """Raise UserError for a folder that cannot be written, or that holds other files and no bundle."""
    folder = Path(folder)
    if folder.exists():
        if not folder.is_dir():
            raise UserError(f"{folder}: is not a folder")
        is_bundle = all((folder / name).is_file() for name in FILES)
        if not is_bundle and any(folder.iterdir()):
            raise UserError(f"{folder}: holds other files and no bundle; choose another --bundle, or empty it")
    check_writable(folder)


def write_bundle(folder: str | Path, model: bytes) -> None:
    """Write the FILES into a new or empty folder or over an earlier bundle's; a user's files beside them stay.

    model: the ONNX file's content. A new folder appears whole; files in a folder that is there are replaced one by one, after
    all have been written. Raises UserError if the disk does not take them, and leaves everything as it was.
    """
    folder = Path(folder).resolve()
    is_new = not folder.exists()
    staged = (folder.parent if is_new else folder) / f".{folder.name}.{os.getpid()}.tmp"
    onnxruntime = import_package("onnxruntime")
    pins = (f"numpy=={numpy.__version__}", f"onnxruntime=={onnxruntime.__version__}", f"pillow=={PIL.__version__}")
    contents = (SCRIPT.read_bytes(), "".join(f"{pin}\n" for pin in pins).encode(), model)
    try:
        try:
            staged.mkdir(parents=True)
            for name, content in zip(FILES, contents, strict=True):
                (staged / name).write_bytes(content)
            if is_new:
                staged.rename(folder)
            else:
                for name in FILES:
                    (staged / name).replace(folder / name)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
