"""Many images through a predictor into a folder."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from datasets.lists import Tree
from utils.errors import UserError
from utils.evaluation.calibration import file_hash
from utils.evaluation.decisions import Decision, Rule
from utils.evaluation.drift import Drift
from utils.files import lock
from utils.predict.batches import Result, predict_batches
from utils.predict.coco import write_coco
from utils.predict.inputs import VIDEO_EXTENSIONS, Inputs, find_inputs, items, watch_folder, watched_items
from utils.predict.outputs import Output, rounded
from utils.predict.predictor import Predictor, whole_map

log = logging.getLogger("uniad")

LONGEST = 1024  # pixels of the longer side of an image in a picture
NO_RULE = Rule()
LISTED = 20  # images without a score that are named on the terminal; errors.csv names all


@dataclass(frozen=True)
class Options:
    rule: Rule = NO_RULE  # how scores and maps become decisions
    format: str = "csv"  # or jsonl
    batch_size: int = 8
    workers: int = 2  # threads that read images and write pictures
    pictures: bool = True
    maps: bool = False
    coco: bool = False  # regions also as annotations
    watch: bool = False  # a folder: images as they come, until Ctrl-C
    frames: int | None = None  # of a camera, or of a watched folder the images; None: until Ctrl-C
    memory_class: str | None = None  # that the predictor compares with; None: all


def predict_into(out: str | Path, checkpoint: str | Path, predictor: Predictor, given: Sequence[str], options: Options) -> str:
    """Predict the inputs `given` (see find_inputs) that have no score in the folder `out` yet; returns a summary in words.

    checkpoint: the predictor's file. Raises UserError if no image has a score in the end.
    """
    predictor.check_class()  # before anything is written: a class without a region of interest
    region = f" in the region of {predictor.class_name}" if predictor.class_name and predictor.engine.roi else ""
    inputs = watch_folder(given) if options.watch else find_inputs(given, out)
    settings = {
        "checkpoint": str(Path(checkpoint).resolve()),
        "sha256": file_hash(checkpoint),
        "score": predictor.engine.score + (f" by the memory of {options.memory_class}" if options.memory_class else "") + region,
        "threshold": options.rule.threshold,
        "pixel_threshold": options.rule.pixel_threshold,
        "min_area": options.rule.min_area,
        "format": options.format,
        "folder": str(inputs.folder) if inputs.folder else None,
        "normal": asdict(options.rule.normal) if options.rule.normal else None,
    }
    errors = [Result(file, reason) for file, reason in inputs.missing]
    if not inputs.paths and not inputs.is_live:
        raise UserError("; ".join(map(error_line, errors)))
    with lock(out):
        output = Output(out, settings)
        before = len(output.done)
        drift = start_drift(options.rule, output.earlier_scores) if inputs.is_live else None
        try:
            predict_missing(predictor, output, inputs, options, errors, drift)
        finally:
            path = output.save_errors(errors)
    done = output.done.union(file.rpartition("#")[0] for file in output.done)  # frames count for their video
    if done.isdisjoint(inputs.named(output.folder)) and inputs.watched is None:
        more = f" (all of them: {path})" if len(errors) > 1 else ""
        first = "".join(map(error_line, errors[:1]))  # none if Ctrl-C came before a camera's first frame
        raise UserError(f"no image could be predicted: {first}{more}")
    lines = [f"{output.scores}: {len(output.done) - before} images predicted, {before} were there already"]
    lines += describe_decisions(output, options.rule)
    if drift is not None:
        lines.append(f"drift: {drift.describe()}")
    if options.coco:
        lines.append(f"{write_coco(output)}: the regions as annotations in COCO's format")
    lines += Tree(left_out=inputs.left_out).describe_left_out()
    if inputs.connections > 1:
        lines.append(f"the stream was lost and connected again: {inputs.connections - 1} times")
    if errors:
        lines.append(f"{path}: {len(errors)} without a score")
        lines += [f"  {error_line(error)}" for error in errors[:LISTED]]
        lines += ["  …"] if errors[LISTED:] else []
    return "\n".join(lines)


def start_drift(rule: Rule, earlier_scores: Sequence[float]) -> Drift | None:
    """With the windows of earlier runs, and the images of the one that they did not fill; None without a calibration."""
    if rule.normal is None or not rule.normal.scores:
        return None
    drift = Drift(rule.normal)
    for score in earlier_scores:
        drift.add(score)
    return drift


def predict_missing(
    predictor: Predictor, output: Output, inputs: Inputs, options: Options, errors: list[Result], drift: Drift | None
) -> None:
    """Add the images without a score to `output`, or to `errors`; say when `drift` notices a change.

    Ctrl-C ends a camera or a stream.
    """
    batch_size, ahead = (1, 0) if inputs.is_live else (options.batch_size, None)  # score what comes at once
    if inputs.watched is None:
        todo = items(inputs, output.folder, output.done, options.frames)
    else:
        todo = islice(watched_items(inputs, output.out, output.done), options.frames)
    batches = predict_batches(predictor, todo, batch_size, options.workers, LONGEST if options.pictures else 0, ahead)
    uncounted = inputs.is_live or any(path.suffix.lower() in VIDEO_EXTENSIONS for path in inputs.paths)
    total = None if uncounted else len(inputs.named(output.folder).keys() - output.done)
    stops = KeyboardInterrupt if inputs.is_live else ()
    with suppress(stops), ThreadPoolExecutor(options.workers) as pool, tqdm(total=total, unit="img", disable=None) as bar:
        for results in batches:
            good = [result for result in results if result.error is None]
            output.add(good, list(pool.map(lambda result: save_one(output, result, options), good)))
            errors += [result for result in results if result.error is not None]
            bar.update(len(results))
            for result in good:
                if drift is not None and drift.add(rounded(result.score)):  # as the table has it, for a later run
                    log.warning("%s", drift.describe())


def save_one(output: Output, result: Result, options: Options) -> Decision:
    """Decide on an image, and write its files."""
    anomaly_map = whole_map(result.anomaly_map, result.size, result.inside)  # h x w
    decision = options.rule.decide(result.score, anomaly_map, result.inspected)
    if decision.mask is not None:
        output.save_mask(result, decision)
    if options.pictures:
        output.save_picture(result, decision, options.rule)
    if options.maps:
        output.save_map(result, anomaly_map)
    return replace(decision, mask=None)


def describe_decisions(output: Output, rule: Rule) -> list[str]:
    """How many images are good, and what the columns of the table mean."""
    if rule.threshold is None:
        return ["no decisions, as there is no threshold: give one with --threshold, or find one with tools/calibrate.py"]
    counts = output.verdicts
    lines = [f"{counts['defective']} defective, {counts['good']} good: the score is above {rule.threshold:.5g}, or not"]
    if rule.normal and rule.normal.scores:
        lines.append("ratio: score / threshold; p: the share of held-out good images that score as high or higher")
    if rule.pixel_threshold is None:
        lines.append("no regions, as there is no pixel threshold: give one with --pixel_threshold, or calibrate again")
    return lines


def error_line(result: Result) -> str:
    """File and error on one line of a terminal, whatever characters a file's name holds."""
    return str(UserError(f"{result.file}: {result.error}"))
