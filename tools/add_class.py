"""Add products to the memory of a trained checkpoint, from photographs of good ones: a minute, and nothing is trained again.

python tools/add_class.py --checkpoint experiments/custom-memory/checkpoints/ckpt.pth.tar --list new/train.json
python tools/add_class.py --checkpoint ckpt.pth.tar --list new/train.json --image_dir photos --tokens 5000 --out more.pth.tar

What the memory holds stays as it is. It writes a new checkpoint, and prints what the addition does to the test scores of the
other classes. tools/prepare_data.py folder makes the list. Calibrate the new checkpoint anew.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.process.arguments import positive_int, tool_parser
from utils.runs.add_class import add_classes


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="F", help="checkpoint of a network with a memory")
    parser.add_argument("--list", required=True, metavar="LIST", help="list of the new classes' good images")
    parser.add_argument("--image_dir", metavar="DIR", help="folder of these images (that of the training)")
    parser.add_argument("--tokens", type=positive_int, metavar="N", help="for each class (what the others have on average)")
    parser.add_argument("--out", metavar="F", help="checkpoint to write (beside the other, with the classes in its name)")
    args = parser.parse_args()
    print(add_classes(args.checkpoint, args.list, args.image_dir, args.tokens, args.out))


if __name__ == "__main__":
    run(main)
