"""Many images through a predictor into a folder."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from datasets.lists import Tree
from utils.errors import UserError
from utils.evaluation.calibration import file_hash
from utils.files import lock
from utils.predict.batches import Result, predict_batches
from utils.predict.inputs import VIDEO_EXTENSIONS, Inputs, find_inputs, items
from utils.predict.outputs import Output
from utils.predict.predictor import Predictor

LONGEST = 1024  # pixels of the longer side of an image in a picture
LISTED = 20  # images without a score that are named on the terminal; errors.csv names all


@dataclass(frozen=True)
class Options:
    threshold: float | None = None  # an image with a higher score is called defective; None: no decisions
    format: str = "csv"  # or jsonl
    batch_size: int = 8
    workers: int = 2  # threads that read images and write pictures
    pictures: bool = True
    scale: tuple[float, float] | None = None  # lowest and highest value of the colours; None: each map's own
    maps: bool = False
    frames: int | None = None  # of a camera; None: until Ctrl-C
    memory_class: str | None = None  # that the predictor compares with; None: all


def predict_into(out: str | Path, checkpoint: str | Path, predictor: Predictor, given: Sequence[str], options: Options) -> str:
    """Predict the inputs `given` (see find_inputs) that have no score in the folder `out` yet; returns a summary in words.

    checkpoint: the predictor's file. Raises UserError if no image has a score in the end.
    """
    inputs = find_inputs(given, out)
    settings = {
        "checkpoint": str(Path(checkpoint).resolve()),
        "sha256": file_hash(checkpoint),
        "score": predictor.engine.score + (f" by the memory of {options.memory_class}" if options.memory_class else ""),
        "threshold": options.threshold,
        "format": options.format,
        "folder": str(inputs.folder) if inputs.folder else None,
    }
    errors = [Result(file, reason) for file, reason in inputs.missing]
    if not inputs.paths and inputs.camera is None:
        raise UserError("; ".join(map(error_line, errors)))
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors.csv says what is wrong with a file
    with lock(out):
        output = Output(out, settings)
        before = len(output.done)
        try:
            predict_missing(predictor, output, inputs, options, errors)
        finally:
            path = output.save_errors(errors)
    done = output.done.union(file.rpartition("#")[0] for file in output.done)  # frames count for their video
    if done.isdisjoint(inputs.named(output.folder)):
        more = f" (all of them: {path})" if len(errors) > 1 else ""
        first = "".join(map(error_line, errors[:1]))  # none if Ctrl-C came before a camera's first frame
        raise UserError(f"no image could be predicted: {first}{more}")
    lines = [f"{output.scores}: {len(output.done) - before} images predicted, {before} were there already"]
    if options.threshold is None:
        lines.append("no decisions, as there is no threshold: give one with --threshold, or find one with tools/calibrate.py")
    lines += Tree(left_out=inputs.left_out).describe_left_out()
    if errors:
        lines.append(f"{path}: {len(errors)} without a score")
        lines += [f"  {error_line(error)}" for error in errors[:LISTED]]
        lines += ["  …"] if errors[LISTED:] else []
    return "\n".join(lines)


def predict_missing(predictor: Predictor, output: Output, inputs: Inputs, options: Options, errors: list[Result]) -> None:
    """Add the images without a score to `output`, or to `errors`. Ctrl-C ends a camera."""
    is_camera = inputs.camera is not None
    batch_size, ahead = (1, 0) if is_camera else (options.batch_size, None)  # score each camera frame at once
    todo = items(inputs, output.folder, output.done, options.frames)
    batches = predict_batches(predictor, todo, batch_size, options.workers, LONGEST if options.pictures else 0, ahead)
    uncounted = is_camera or any(path.suffix.lower() in VIDEO_EXTENSIONS for path in inputs.paths)
    total = None if uncounted else len(inputs.named(output.folder).keys() - output.done)
    stops = KeyboardInterrupt if is_camera else ()
    with suppress(stops), ThreadPoolExecutor(options.workers) as pool, tqdm(total=total, unit="img", disable=None) as bar:
        for results in batches:
            good = [result for result in results if result.error is None]
            if options.pictures:
                list(pool.map(lambda result: output.save_picture(result, options.scale), good))
            if options.maps:
                list(pool.map(output.save_map, good))
            output.add(good, options.threshold)
            errors += [result for result in results if result.error is not None]
            bar.update(len(results))


def error_line(result: Result) -> str:
    """File and error on one line of a terminal, whatever characters a file's name holds."""
    return str(UserError(f"{result.file}: {result.error}"))
