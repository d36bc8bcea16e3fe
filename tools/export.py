"""Write a checkpoint as one file that other software runs: image in, score and anomaly map out.

python tools/export.py --checkpoint experiments/demo/checkpoints/ckpt.pth.tar --format onnx
python tools/export.py --checkpoint experiments/demo/checkpoints/ckpt.pth.tar --format torchscript --out model.torchscript

Input `image`, B x H x W x 3 RGB of the network's input size: uint8, or float32 in 0..1 with --input float; any batch size.
Outputs `score`, B, and `map`, B x H x W float32. Resize with PIL, as training does: that is not inside, no graph does it exactly.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.config import load_config
from utils.predict.export import INPUTS, SUFFIXES, export_checkpoint
from utils.predict.torch_engine import SECTIONS
from utils.process.cli import run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--format", required=True, help=" or ".join(SUFFIXES))
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (beside the checkpoint)")
    parser.add_argument("--input", choices=INPUTS, default="uint8", help="type of the image (uint8)")
    parser.add_argument("--config", help="the experiment's YAML file, for a published checkpoint, which does not hold it")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    config = load_config(args.config, needs=SECTIONS) if args.config else None
    print(export_checkpoint(args.checkpoint, args.format, args.out, args.input, config))


if __name__ == "__main__":
    run(main)
