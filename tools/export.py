"""Write a checkpoint as one file that other software runs: image in, score and anomaly map out.

python tools/export.py --checkpoint experiments/demo/checkpoints/ckpt.pth.tar --format onnx
python tools/export.py --checkpoint experiments/demo/checkpoints/ckpt.pth.tar --format torchscript --out model.torchscript
python tools/export.py --checkpoint experiments/demo/checkpoints/ckpt.pth.tar --bundle line

--bundle writes a folder that needs neither PyTorch nor this repository: model.onnx, anomaly.py and requirements.txt.

Input `image`, B x H x W x 3 RGB of the network's input size: uint8, or float32 in 0..1 with --input float; any batch size.
Outputs `score`, B, and `map`, B x H x W float32. Resize images with PIL, as training does: no graph does it exactly.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.errors import UserError
from utils.predict.export import INPUTS, WRITERS, export_bundle, export_checkpoint
from utils.process.arguments import tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--format", help=" or ".join(WRITERS))
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (beside the checkpoint)")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="folder to write, with the model as onnx")
    parser.add_argument("--input", choices=INPUTS, default="uint8", help="type of the image (uint8)")
    parser.add_argument("--config", help="the experiment's YAML file, for a published checkpoint, which does not hold it")
    parser.add_argument("--class_name", metavar="CLASS", help="whose region of interest the file has, where each class has one")
    args = parser.parse_args()
    if args.bundle is None and args.format is None:
        raise UserError("give --format, or --bundle")
    if args.bundle is None:
        print(export_checkpoint(args.checkpoint, args.format, args.out, args.input, args.config, args.class_name))
    elif args.out or args.format not in (None, "onnx"):
        raise UserError("--bundle writes its own folder and format: leave out --out, and --format or give it as onnx")
    else:
        print(export_bundle(args.checkpoint, args.bundle, args.input, args.config, args.class_name))


if __name__ == "__main__":
    run(main)
