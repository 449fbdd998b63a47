"""Inference beside torchvision and onnxruntime on this machine.

    python -m benchmarks.inference [--json] [--pairs 5]

ResNet-50, 224 pixels, float32, batches of 1 and 32, all in one process, in turn. The figures are
those of `flaxres bench inference --model resnet50`. Needs the extra `parity`, onnxruntime and onnx.
"""

from benchmarks import command
from flaxres.cli._process import keep_memory, use_compiler
from flaxres.diagnostics.latency import PEERS, measure


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    chosen = parser.parse_args()
    keep_memory()
    use_compiler()
    figures = measure("resnet50", (1, 32), pairs=chosen.pairs)
    missing = [peer for peer in PEERS if f"resnet50_batch1_vs_{peer}" not in figures]
    if missing:
        raise SystemExit(
            f"not installed: {', '.join(missing)}; pip install -e '.[parity]' onnx onnxruntime"
        )
    command.show(figures, chosen.json)


if __name__ == "__main__":
    main()
