"""`flaxres bench`: measurements before training, and of inference."""

from collections.abc import Sequence

from flaxres.cli._options import parse_run
from flaxres.cli._process import PROCESSES, joined, keep_memory, silence, use_compiler
from flaxres.cli._words import JSON, Option, Parser, count_of, show, value_of
from flaxres.errors import InputError, unknown

OUT = Option("--out", "FILE.png", "The picture.")
STEPS = Option("--steps", "N", "Steps of a measurement.")


def bench(arguments: Sequence[str]) -> None:
    """Runs one of the measurements."""
    word, rest = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    if word in ("-h", "--help"):
        print(BENCH)
        return
    if word not in BENCHES:
        raise unknown("flaxres bench command", word, BENCHES)
    BENCHES[word](rest)


def bench_schedule(arguments: list[str]) -> None:
    """Draws the schedule of a config."""
    from flaxres.diagnostics.schedule import schedule

    target, rest = value_of(arguments, "--out")
    description = "Draw the learning rate and the image size by epoch."
    config, _ = parse_run(rest, None, "flaxres bench schedule", description, [OUT])
    target = target or "schedule.png"
    facts = schedule(config, target)
    print("\n".join([*(f"{name}: {value}" for name, value in facts.items()), f"drew {target}"]))


def bench_lr(arguments: list[str]) -> None:
    """Trains at rising learning rates."""
    target, rest = value_of(arguments, "--out")
    steps, rest = count_of(rest, "--steps", 200)
    low, rest = value_of(rest, "--from")
    high, rest = value_of(rest, "--to")
    options = (
        Option("--from", "RATE", "The first learning rate (default: 1e-5)."),
        Option("--to", "RATE", "The last learning rate (default: 10)."),
        *(STEPS, OUT, *PROCESSES),
    )
    description = "Train at rising learning rates and draw the loss."
    config, _ = parse_run(joined(rest), None, "flaxres bench lr", description, options)
    silence()
    from flaxres.diagnostics.range_test import draw, range_test

    found = range_test(
        config, steps, _number("--from", low or "1e-5"), _number("--to", high or "10")
    )
    target = target or "lr.png"
    draw(found, config, target)
    print(f"steepest_fall: {found.steepest:.3g}")
    print(f"a_tenth_of_the_lowest: {found.lowest / 10:.3g}")
    print(f"drew {target}")


def _number(option: str, text: str) -> float:
    """Returns the number that an option gives.

    Raises:
      InputError: it is none.
    """
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{option}={text!r}: the rule is a number") from error


def bench_rates(arguments: list[str]) -> None:
    """Measures the images a second of the step, of the input, and of both."""
    steps, rest = count_of(arguments, "--steps", 20)
    description = "Measure the images a second of the step, of the input, and of both."
    options = (STEPS, *PROCESSES)
    config, _ = parse_run(joined(rest), None, "flaxres bench rates", description, options)
    silence()
    from flaxres.diagnostics.rates import rates

    for name, value in rates(config, steps).items():
        print(f"{name}: {value:,.3f}")


def bench_inference(arguments: list[str]) -> None:
    """Measures inference by batch size."""
    parser = Parser(
        "flaxres bench inference",
        description="Measure latency and throughput by batch size, beside torchvision and "
        "onnxruntime where they are installed.",
    )
    parser.add_argument("--model", default="resnet50", help="a name of flaxres models (resnet50)")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8, 32), metavar="N")
    parser.add_argument(
        "--size", type=int, help="pixels of a side (224; 32 for the CIFAR networks)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="of flaxres' network; the others compute in float32 (float32)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    keep_memory()
    use_compiler()
    silence()
    from flaxres.diagnostics.latency import PEERS, measure

    figures = measure(chosen.model, chosen.batches, chosen.size, dtype=chosen.dtype)
    lines = [f"{'batch':>6}{'':14}{'milliseconds':>14}{'images/s':>10}  flaxres is"]
    for batch in chosen.batches:
        name = f"{chosen.model}_batch{batch}"
        for peer in ("", *PEERS):
            start = f"{name}_{peer}" if peer else name
            if (ms := figures.get(f"{start}_milliseconds")) is None:
                continue
            rate, ratio = figures[f"{start}_images_per_second"], figures.get(f"{name}_vs_{peer}")
            faster = "" if ratio is None else f"{ratio:.2f} x as fast"
            lines.append(f"{batch:>6}  {peer or 'flaxres':<12}{ms:>14.1f}{rate:>10.1f}  {faster}")
    show(chosen.json, figures, lines)


def bench_dtypes(arguments: list[str]) -> None:
    """Compares the accuracy and the speed of a run's network by the dtype of its inference."""
    as_json = "--json" in arguments
    rest = [word for word in arguments if word != "--json"]
    description = (
        "Evaluate the newest checkpoint of a run in float32, bfloat16 and 8 bits, on the same "
        "images: top-1, loss, and images a second of the network."
    )
    options = (JSON, *PROCESSES)
    config, workdir = parse_run(joined(rest), None, "flaxres bench dtypes", description, options)
    silence()
    from flaxres.diagnostics.dtypes import compared

    figures = compared(config, workdir)
    lines = [f"{'':10}{'top-1':>9}{'loss':>9}{'same class':>12}{'images/s':>10}"]
    for name in ("float32", "bfloat16", "int8"):
        if (top1 := figures.get(f"{name}_top1")) is None:
            lines.append(f"{name:10}  needs a processor with AVX512_VNNI")
            continue
        loss, same, rate = (
            figures[f"{name}_{figure}"] for figure in ("loss", "agreement", "images_per_second")
        )
        lines.append(f"{name:10}{top1:9.2%}{loss:9.4f}{same:12.2%}{rate:10,.0f}")
    lines.append(f"of {figures['examples']:,.0f} images")
    show(as_json, figures, lines)


BENCHES = {
    "schedule": bench_schedule,
    "lr": bench_lr,
    "rates": bench_rates,
    "inference": bench_inference,
    "dtypes": bench_dtypes,
}
BENCH = """usage: flaxres bench COMMAND --config FILE [--section.field VALUE ...]

  schedule  draw the learning rate and the image size by epoch   --out schedule.png
  lr        train at rising learning rates and draw the loss     --steps 200 --out lr.png
  rates     images a second of the step, of the input, of both   --steps 20
  inference latency and throughput by batch, beside peers        --model resnet50 --batches 1 32
  dtypes    accuracy and speed in float32, bfloat16 and 8 bits   --workdir DIR

Measures a config before it is trained."""
