"""Inference beside torchvision and onnxruntime on this machine: `python -m benchmarks.inference [--json] [--pairs 5]`.

ResNet-50, 224 px, float32, batches of 1 and 32, all in one process, taking turns: what `flaxres bench inference --model resnet50` prints, as JSON.
Needs the extra `parity`, and onnxruntime and onnx.
"""

import argparse
import json

from flaxres.cli._process import keep_memory, use_compiler
from flaxres.diagnostics.latency import PEERS, measure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
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
    print(
        json.dumps(figures)
        if chosen.json
        else "\n".join(f"{name}: {value:.3f}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
