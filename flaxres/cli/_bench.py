"""`flaxres bench`: measurements of a config before it is trained, and of inference."""

import os
from collections.abc import Sequence

from flaxres.cli._options import Parser, parse_run, show, value_of
from flaxres.cli._process import joined, keep_memory, silence, use_compiler
from flaxres.errors import InputError, unknown


def bench(arguments: Sequence[str]) -> None:
    """Measures a config before it is trained: its schedule, its input and step, and its memory on accelerators that are not here."""
    word, rest = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    if word in ("-h", "--help"):
        print(BENCH)
        return
    if word not in BENCHES:
        raise unknown("flaxres bench command", word, BENCHES)
    BENCHES[word](rest)


def bench_schedule(arguments: list[str]) -> None:
    from flaxres.diagnostics.schedule import schedule

    target, rest = value_of(arguments, "--out")
    config, _ = parse_run(
        rest,
        None,
        "flaxres bench schedule",
        "Draw the learning rate and the size of pictures by epoch (--out FILE.png).",
    )
    target = target or "schedule.png"
    facts = schedule(config, target)
    print("\n".join([*(f"{name}: {value}" for name, value in facts.items()), f"drew {target}"]))


def bench_rates(arguments: list[str]) -> None:
    steps, rest = value_of(arguments, "--steps")
    if steps is not None and not (steps.isdigit() and int(steps)):
        raise InputError(f"--steps={steps!r}: the rule is a whole number > 0")
    config, _ = parse_run(
        joined(rest),
        None,
        "flaxres bench rates",
        "Images a second of the step, of the input, and of both (--steps N a measurement).",
    )
    silence()
    from flaxres.diagnostics.rates import rates

    for name, value in rates(config, int(steps or 20)).items():
        print(f"{name}: {value:,.3f}")


def bench_plan(arguments: list[str]) -> None:
    import jax

    from flaxres.diagnostics.compiled import ENVIRONMENT, platform_of

    topology, rest = value_of(arguments, "--topology")
    asks = {"-h", "--help"} & set(rest)
    if topology is None and not asks:
        raise InputError(
            "flaxres bench plan needs --topology, e.g. v5e:2x4, v5p:4x4x4, v6e:8x8 or h200:8"
        )
    config, _ = parse_run(
        rest,
        None,
        "flaxres bench plan",
        "What a config's step moves and holds on accelerators that are not here (--topology v5e:16x16).",
    )
    for variable, text in ENVIRONMENT[platform_of(str(topology))].items():
        os.environ[variable] = (
            f"{os.environ.get(variable, '')} {text}".strip() if variable == "XLA_FLAGS" else text
        )
    jax.config.update("jax_platforms", "cpu")
    silence()
    from flaxres.diagnostics.plan import plan

    figures, kinds, kernels = plan(config, str(topology))
    for name, value in figures.items():
        print(f"{name}: {value:,.2f}")
    print(
        "collectives by kind: "
        + (", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none")
    )
    for kind, size, count in kernels:
        print(f"{size:10.1f} MB/image in {count:4d} x {kind}")
    print(
        "it fits"
        if figures["fits"]
        else "it does not fit: lower train.batch_size, or set train.accumulate or model.remat"
    )


def bench_inference(arguments: list[str]) -> None:
    parser = Parser(
        "flaxres bench inference",
        description="Latency and throughput by batch, beside torchvision and onnxruntime where they are installed.",
    )
    parser.add_argument("--model", default="resnet50", help="a name of flaxres models (resnet50)")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8, 32), metavar="N")
    parser.add_argument(
        "--size", type=int, help="pixels of a side (224; 32 for the CIFAR networks)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    keep_memory()
    use_compiler()
    silence()
    from flaxres.diagnostics.latency import PEERS, measure

    figures = measure(chosen.model, chosen.batches, chosen.size)
    lines = [f"{'batch':>6}{'':14}{'milliseconds':>14}{'images/s':>10}  ours is"]
    for batch in chosen.batches:
        for peer in ("", *PEERS):
            start = "_".join(part for part in (f"{chosen.model}_batch{batch}", peer) if part)
            if (ms := figures.get(f"{start}_milliseconds")) is not None:
                ratio = figures.get(f"{chosen.model}_batch{batch}_vs_{peer}")
                faster = "" if ratio is None else f"{ratio:.2f} x as fast"
                lines.append(
                    f"{batch:>6}  {peer or 'flaxres':<12}{ms:>14.1f}{figures[f'{start}_images_per_second']:>10.1f}  {faster}"
                )
    show(chosen.json, figures, lines)


BENCHES = {
    "schedule": bench_schedule,
    "rates": bench_rates,
    "plan": bench_plan,
    "inference": bench_inference,
}
BENCH = """usage: flaxres bench COMMAND --config FILE [--section.field VALUE ...]

  schedule  draw learning rate and picture size by epoch          --out schedule.png
  rates     images a second of the step, of the input, of both   --steps 20
  plan      memory and traffic on accelerators not here           --topology v5e:16x16, h200:8
  inference latency and throughput by batch, beside peers         --model resnet50 --batches 1 32

Measures a config before it is trained."""
