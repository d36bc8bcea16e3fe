"""Many images through a predictor into a folder."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from utils.errors import UserError
from utils.evaluation.calibration import file_hash
from utils.predict.batches import Failed, Predicted, predict_batches
from utils.predict.inputs import VIDEOS, Inputs, camera_name, find_inputs, items, name_below
from utils.predict.outputs import Output
from utils.predict.predictor import Predictor

LARGEST = 1024  # pixels of the longer side of an image in a picture
LISTED = 20  # images without a score that are named on the terminal; errors.csv names all


@dataclass(frozen=True)
class Options:
    """How to predict."""

    threshold: float | None = None  # above it an image is called defective; None: no decisions
    format: str = "csv"  # or jsonl
    batch_size: int = 8
    workers: int = 2  # threads that read images and write pictures
    pictures: bool = True
    scale: tuple[float, float] | None = None  # lowest and highest value of the colours; None: each map's own
    maps: bool = False
    frames: int | None = None  # of a camera; None: until Ctrl-C


def predict_into(out: str | Path, checkpoint: str | Path, predictor: Predictor, given: Sequence[str], options: Options) -> str:
    """Predict what is not predicted yet of the inputs `given` (see find_inputs); returns what to say at the end.

    checkpoint: the predictor's file. A picture and a map are there before the image's line is. Raises UserError if no image
    has a score then.
    """
    inputs = find_inputs(given, out)
    settings = {
        "checkpoint": str(Path(checkpoint).resolve()),
        "sha256": file_hash(checkpoint),
        "score": predictor.engine.score,
        "threshold": options.threshold,
        "format": options.format,
        "folder": str(inputs.folder) if inputs.folder else None,
    }
    errors = [Failed(file, reason) for file, reason in inputs.missing]
    if not inputs.paths and inputs.camera is None:
        raise UserError("; ".join(f"{printable(error.file)}: {error.error}" for error in errors))
    output = Output(out, settings)
    before = len(output.done)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong with a file is said here
    try:
        predict(predictor, output, inputs, options, errors)
    finally:
        path = output.save_errors(errors)
    if not has_score(inputs, output):
        raise UserError(f"no image could be predicted: {listed(errors[:1])}{f' (all of them: {path})' if errors[1:] else ''}")
    lines = [f"{output.scores}: {len(output.done) - before} images predicted, {before} were there already"]
    if options.threshold is None:
        lines.append("no decisions, as there is no threshold: give one with --threshold, or find one with tools/calibrate.py")
    if errors:
        lines.append(f"{path}: {len(errors)} without a score")
        lines += [f"  {listed([error])}" for error in errors[:LISTED]]
        lines += ["  …"] if errors[LISTED:] else []
    return "\n".join(lines)


def predict(predictor: Predictor, output: Output, inputs: Inputs, options: Options, errors: list[Failed]) -> None:
    """Write what there is to say of each input into `output`, or `errors`. Ctrl-C ends a camera."""
    is_camera = inputs.camera is not None
    prefix = f"{camera_name(inputs.camera)}#"
    last_frame = max((int(file.removeprefix(prefix)) for file in output.done if is_camera), default=-1)
    todo = items(inputs, output.folder, output.done.copy(), last_frame, options.frames)
    batch_size, ahead = (1, 0) if is_camera else (options.batch_size, None)  # a frame is wanted when it is seen
    largest = LARGEST if options.pictures else 0
    batches = predict_batches(predictor, todo, batch_size, options.workers, largest, ahead)
    uncounted = is_camera or any(path.suffix.lower() in VIDEOS for path in inputs.paths)
    total = None if uncounted else sum(name_below(path, output.folder) not in output.done for path in inputs.paths)
    stops = (KeyboardInterrupt,) if is_camera else ()
    with suppress(*stops), ThreadPoolExecutor(options.workers) as pool, tqdm(total=total, unit="img", disable=None) as bar:
        for results in batches:
            good = [result for result in results if isinstance(result, Predicted)]
            if options.pictures:
                list(pool.map(lambda result: output.save_picture(result, options.scale), good))
            if options.maps:
                list(pool.map(output.save_map, good))
            output.add(good, options.threshold)
            errors += [result for result in results if isinstance(result, Failed)]
            bar.update(len(results))


def has_score(inputs: Inputs, output: Output) -> bool:
    """Whether an image of the inputs was predicted, now or before."""
    known = output.done | {file.rpartition("#")[0] for file in output.done}  # a video with a frame
    names = [name_below(path, output.folder) for path in inputs.paths]
    return any(name in known for name in (*names, camera_name(inputs.camera)))


def listed(errors: Sequence[Failed]) -> str:
    return "; ".join(f"{printable(error.file)}: {printable(error.error)}" for error in errors)


def printable(text: str) -> str:
    """On one line of a terminal, whatever a file's name holds."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
