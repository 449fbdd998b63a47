"""Inference beside torchvision and onnxruntime on this machine.

    python -m benchmarks.inference [--json] [--pairs 5]

ResNet-50, 224 pixels, batches of 1 and 32, all in one process, in turn: flaxres in float32,
bfloat16 and, where the processor has AVX512_VNNI, in 8 bits; the peers in float32. The figures are
those of `flaxres bench inference --model resnet50 --dtype DTYPE`. Takes six minutes. Needs the
extra `parity`, onnxruntime and onnx.
"""

from benchmarks import command
from flaxres.cli._process import keep_memory, use_compiler
from flaxres.diagnostics.latency import DTYPES, PEERS, measure
from flaxres.inference.int8 import is_available


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    chosen = parser.parse_args()
    keep_memory()
    use_compiler()
    figures: dict[str, float] = {}
    for dtype in DTYPES:
        if dtype == "int8" and not is_available():
            continue
        measured = measure("resnet50", (1, 32), pairs=chosen.pairs, dtype=dtype)
        figures |= {
            name if dtype == "float32" else f"{dtype}_{name}": value
            for name, value in measured.items()
        }
    missing = [peer for peer in PEERS if f"resnet50_batch1_vs_{peer}" not in figures]
    if missing:
        raise SystemExit(
            f"not installed: {', '.join(missing)}; pip install -e '.[parity]' onnx onnxruntime"
        )
    command.show(figures, chosen.json)


if __name__ == "__main__":
    main()
