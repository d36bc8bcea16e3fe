"""Score images with a trained network: files, folders, patterns, a video, a camera or a stream.

python tools/predict.py --checkpoint experiments/demo/checkpoints/ckpt.pth.tar photos/ --out predicted
python tools/predict.py --checkpoint model.onnx "photos/**/*.png" film.avi --out predicted --threshold 3.2
python tools/predict.py --checkpoint ckpt.pth.tar 0 --out camera --frames 100
python tools/predict.py --checkpoint ckpt.pth.tar rtsp://10.0.0.7/stream1 --out camera
python tools/predict.py --checkpoint ckpt.pth.tar incoming/ --watch --out decided

DIR/scores.csv gets a line an image, DIR/regions.csv a line a region, DIR/pictures/ its heat map, DIR/masks/ its regions. A second
run continues: it leaves out images that have a score. Decisions need a calibration (tools/calibrate.py), or --threshold.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.errors import UserError
from utils.evaluation.decisions import Rule
from utils.predict.predictor import Predictor
from utils.predict.run import Options, predict_into
from utils.process.arguments import finite_float, percent, positive_int, tool_parser


def parse_arguments() -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, folder, pattern, video, a camera's number, or rtsp://, http://"
    )
    parser.add_argument("--checkpoint", required=True, metavar="F", help="checkpoint, or exported .onnx file")
    parser.add_argument("--config", metavar="C", help="for a checkpoint that holds no configuration: the experiment's YAML file")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--threshold", type=finite_float, metavar="T", help="a higher score is defective (calibration.json's)")
    parser.add_argument("--class_name", metavar="CLASS", help="use this class's threshold, not that of all, and its region")
    parser.add_argument("--pixel_threshold", type=finite_float, metavar="T", help="a region is above it (as in calibration.json)")
    parser.add_argument("--min_area", type=percent, metavar="PERCENT", help="of the image that a region has (as calibrated)")
    parser.add_argument("--memory_class", metavar="CLASS", help="of a memory: compare with this class only, not with all")
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="of the scores (csv)")
    parser.add_argument("--batch_size", type=positive_int, default=8, metavar="N", help="images at a time (8)")
    parser.add_argument("--workers", type=positive_int, default=2, metavar="N", help="threads that read images (2)")
    parser.add_argument("--save_maps", action="store_true", help="also write anomaly maps as DIR/maps/*.npy")
    parser.add_argument("--no_pictures", action="store_true", help="do not draw heat maps")
    parser.add_argument("--scale", type=finite_float, nargs=2, metavar=("LOW", "HIGH"), help="of heat maps (as calibrated)")
    parser.add_argument("--coco", action="store_true", help="also write the regions as DIR/coco.json, for annotation tools")
    parser.add_argument("--watch", action="store_true", help="predict the images of a folder as they come, until Ctrl-C")
    parser.add_argument("--frames", type=positive_int, metavar="N", help="of a camera, stream or watched folder: stop after N")
    parser.add_argument("--device", help='e.g. "cpu", "cuda:1" (a GPU if there is one)')
    return parser.parse_intermixed_args()


def choose_rule(args: argparse.Namespace, predictor: Predictor) -> Rule:
    """The calibration's rule, with what the arguments replace of it."""
    calibration = predictor.engine.calibration
    if args.class_name is not None and args.memory_class is not None:
        raise UserError("--class_name's threshold is of scores by the whole memory: with --memory_class give --threshold")
    if calibration is None and args.class_name is not None and predictor.engine.roi is None:
        raise UserError(f"--class_name needs a calibration of {args.checkpoint}: make one with tools/calibrate.py")
    rule = Rule.of(calibration, args.class_name) if calibration else Rule()
    given = {name: getattr(args, name) for name in ("threshold", "pixel_threshold", "min_area")}
    if args.scale:
        given["scale"] = tuple(args.scale)
    rule = replace(rule, **{name: value for name, value in given.items() if value is not None})
    if args.coco and rule.pixel_threshold is None:
        raise UserError("--coco needs regions: give --pixel_threshold, or calibrate with tools/calibrate.py")
    return rule


def main() -> None:
    args = parse_arguments()
    predictor = Predictor.from_checkpoint(args.checkpoint, args.device, args.config, args.memory_class)
    predictor.class_name = args.class_name
    options = Options(
        rule=choose_rule(args, predictor),
        format=args.format,
        batch_size=args.batch_size,
        workers=args.workers,
        pictures=not args.no_pictures,
        maps=args.save_maps,
        coco=args.coco,
        watch=args.watch,
        frames=args.frames,
        memory_class=args.memory_class,
    )
    print(predict_into(args.out, args.checkpoint, predictor, args.inputs, options))


if __name__ == "__main__":
    run(main)
