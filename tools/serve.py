"""Serve a trained network: a page in the browser at /, decisions at POST /predict.

python tools/serve.py --checkpoint experiments/custom-memory/checkpoints/ckpt.pth.tar
curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
curl -F image=@photo.jpg "http://127.0.0.1:8000/predict?format=png" > picture.png

/docs describes all requests, /health says what runs, /metrics counts for Prometheus. Other machines, which --host lets in,
need a token, from --token or the environment's UNIAD_TOKEN. SIGTERM and Ctrl-C finish what has come in.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.process.cli import run

# isort: split
from utils.process.arguments import positive_int, tool_parser

TOKEN = "UNIAD_TOKEN"


def parse_arguments() -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="F", help="checkpoint, or exported .onnx file")
    parser.add_argument("--config", metavar="C", help="for a checkpoint that holds no configuration: the experiment's YAML file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="(8000)")
    parser.add_argument("--token", help=f"that requests must bring ({TOKEN} in the environment)")
    parser.add_argument("--device", help='e.g. "cpu", "cuda:1" (a GPU if there is one)')
    parser.add_argument("--workers", type=positive_int, default=2, metavar="N", help="threads that decode images and draw (2)")
    parser.add_argument("--max_megabytes", type=float, default=20.0, metavar="M", help="of a request (20)")
    parser.add_argument("--max_megapixels", type=float, default=50.0, metavar="M", help="of an image (50)")
    parser.add_argument("--max_waiting", type=positive_int, default=32, metavar="N", help="requests at a time (32)")
    parser.add_argument("--max_seconds", type=float, default=30.0, metavar="S", help="for a request (30)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    from utils.serve.app import Limits
    from utils.serve.start import serve

    limits = Limits(args.max_megabytes, args.max_megapixels, args.max_waiting, args.max_seconds)
    token = args.token or os.environ.get(TOKEN)
    serve(args.checkpoint, limits, args.host, args.port, token, args.device, args.config, args.workers)


if __name__ == "__main__":
    run(main)
