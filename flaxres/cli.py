"""The command line: `train.py` and the `flaxres` command. Thin: it reads words and calls the library."""

import argparse
import contextlib
import dataclasses
import errno
import importlib.util
import io
import json
import os
import pathlib
import sys
import time
import traceback
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from flaxres.errors import InputError, WriteError, unknown
from flaxres.training.config import Config, described, from_json, kinds, load_config, options

if typing.TYPE_CHECKING:
    from flaxres.prediction import Predictor

EXIT_REFUSED, EXIT_UNWRITTEN = 2, 74
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def parse_run(arguments: Sequence[str], default: str | None, program: str, description: str) -> tuple[Config, str]:
    """`--config FILE --workdir DIR --section.field VALUE ...` -> the config and the workdir; raises InputError, one line, for any mistake.

    Without `--config` the config is that of the run in the workdir, if there is one, else the file `default`.
    """
    import tyro

    chosen, rest = value_of(arguments, "--config")
    where, rest = value_of(rest, "--workdir")
    saved = pathlib.Path(where or "") / "config.json"
    there = os.path.exists(saved)  # noqa: PTH110 (Path.exists raises where the folder can't be read)
    if chosen is None and (default is None or (where and there)):
        hint = ", or --config FILE to start one" if program == "flaxres train" else ""
        if where and not there and hint:
            raise InputError(f"workdir {where!r} has no run to go on with: give another{hint}")
        asks = {"-h", "--help"} & set(rest)
        if not where and not asks:
            raise InputError(f"--workdir is missing: give the workdir of a run{hint}")
        file, start = str(saved), Config() if asks and not there else from_json(saved)
    else:
        file = chosen or str(default)
        start = load_config(file)
    folder = where or f"runs/{pathlib.Path(file).stem}"

    @dataclasses.dataclass(frozen=True)
    class Options:
        config_file: Annotated[str, tyro.conf.arg(name="config", help="Python file that binds `config`.", metavar="FILE")] = file
        workdir: Annotated[str, tyro.conf.arg(help="The folder of the run.", metavar="DIR")] = folder
        config: Annotated[Config, tyro.conf.arg(name="")] = start

    Options.__doc__ = description
    if not {"-h", "--help"} & set(rest):
        try_each(rest, {flag(field): kind for field, kind in kinds().items()}, start)
    return tyro.cli(Options, args=rest, default=Options(), prog=program, config=(tyro.conf.FlagConversionOff,)).config, folder


def value_of(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of the flag `name`, `--name V` or `--name=V`, and the arguments without it; the last one counts."""
    value, rest, i = None, [], 0
    while i < len(arguments):
        word, i = arguments[i], i + 1
        if word == name:
            if i == len(arguments):
                raise InputError(f"{name} needs a value")
            value, i = arguments[i], i + 1
        elif word.startswith(name + "="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return value, rest


def groups(arguments: Sequence[str]) -> list[list[str]]:
    """The arguments, one list for each flag with its values."""
    found: list[list[str]] = []
    for word in arguments:
        if word.startswith("--"):
            found.append([word])
        elif found:
            found[-1].append(word)
        else:
            raise InputError(f"{word!r} is no option: options are --config, --workdir and --section.field, see --help")
    return found


def try_each(arguments: Sequence[str], names: dict[str, Any], start: Config) -> None:
    """Parses each option by itself, so that the one that can't be parsed is named."""
    import tyro

    for words in groups(arguments):
        name, _, value = words[0].partition("=")
        if (kind := names.get(name.replace("_", "-"))) is None:
            raise unknown("option", name, [*names, "--config", "--workdir"])
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                tyro.cli(Config, args=words, default=start, console_outputs=False, config=(tyro.conf.FlagConversionOff,))
        except SystemExit as error:
            given = " ".join([value, *words[1:]] if value else words[1:])
            if choices := options(kind):
                raise unknown(f"value of {name}", given, map(str, choices)) from error
            raise InputError(f"{name}={given!r}: the rule is {described(kind)}") from error


def refusing(function: Callable[[], Any]) -> int:
    """Runs `function`; an InputError becomes one line on stderr and exit code 2, what can't be written one and 74, an early Ctrl-C one and 130."""
    try:
        function()
    except KeyboardInterrupt:
        print("flaxres: interrupted before training began; nothing is lost, nothing new was saved", file=sys.stderr, flush=True)
        os._exit(130)  # the compiler's threads may still run, and an orderly exit would crash over them
    except InputError as error:
        print(f"flaxres: {' '.join(str(error).split())}", file=sys.stderr)
        return ended(EXIT_REFUSED)
    except FloatingPointError as error:
        print(f"flaxres: {error}", file=sys.stderr)
        return ended(1)
    except OSError as error:
        if not isinstance(error, WriteError) and error.errno not in FULL:
            return crashed()
        fix = "" if isinstance(error, WriteError) else "; what was saved is intact: make room and start the same command again"
        print(f"flaxres: {error}{fix}", file=sys.stderr, flush=True)
        os._exit(EXIT_UNWRITTEN)  # threads that write would complain about the end of the interpreter
    except Exception:
        return crashed()
    return 0


def crashed() -> int:
    """Called while an exception is handled: raises it again, or where others wait for this process, prints it and leaves."""
    if not several():
        raise
    traceback.print_exc()
    return ended(1)


def several() -> bool:
    import jax

    return jax.distributed.is_initialized()


def ended(code: int) -> int:
    """The exit code; one of several processes leaves at once, since an orderly exit would wait for the others, who wait for it."""
    if several():
        from flaxres.training.hosts import leader

        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(2 if leader() else 0)  # the others' connection to the first process ends with it
        os._exit(code)
    return code


def cpus_alone() -> bool:
    """Whether JAX has no accelerator, before it is asked."""
    return os.environ.get("JAX_PLATFORMS", "") == "cpu" or not any(importlib.util.find_spec(plugin) for plugin in ("jax_plugins", "libtpu"))


def keep_memory() -> None:
    """Has glibc keep what XLA's CPU client frees. It allocates the temporaries of each step anew, and the kernel would otherwise take such large
    blocks back and zero each page again: a third of a CIFAR step. Only where JAX has no accelerator, and before JAX's threads start.
    """
    import ctypes

    if not cpus_alone():
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for setting, value in ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
            mallopt(setting, value)


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache folder, which only the user may enter, since what lies there is run."""
    import jax

    from flaxres.cache import private_folder

    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    try:
        folder = private_folder("compiled")
    except (OSError, RuntimeError) as error:  # not writable; no home
        print(f"flaxres: compiled programs are not kept: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def use_compiler() -> None:
    """Convolutions that this machine's C++ compiler makes, where JAX has CPUs alone and the environment has no FLAXRES_NATIVE_CONVOLUTIONS=0."""
    if not cpus_alone() or os.environ.get("FLAXRES_NATIVE_CONVOLUTIONS") == "0":
        return
    from flaxres.ops.native import use_native_convolutions

    try:
        use_native_convolutions()
    except InputError as error:
        print(f"flaxres: {error}", file=sys.stderr)


def silence() -> None:
    """Keeps the libraries' chatter off the terminal; warnings and errors stay."""
    import logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)


def joined(arguments: Sequence[str]) -> list[str]:
    """Joins the processes that `--coordinator HOST:PORT --processes N --process I` or a cluster's environment name; returns the other arguments."""
    values: list[str | None] = []
    rest = list(arguments)
    for name in ("--coordinator", "--processes", "--process"):
        value, rest = value_of(rest, name)
        if value is not None and name != "--coordinator" and not value.isdigit():
            raise InputError(f"{name}={value!r}: the rule is a whole number, >= 0")
        values.append(value)
    keep_memory()
    if not {"-h", "--help"} & set(rest):
        from flaxres.training.hosts import join

        coordinator, processes, process = values
        join(coordinator, None if processes is None else int(processes), None if process is None else int(process))
        if not several():  # each process would have kept another part; and programs for several devices have XLA's convolutions
            keep_compiled()
            use_compiler()
    return rest


def train(arguments: Sequence[str], default: str | None, program: str) -> None:
    """Trains a config; see `flaxres.fit`."""
    arguments = joined(arguments)
    config, workdir = parse_run(arguments, default, program, "Train a residual network, or go on from the workdir's newest checkpoint.")
    silence()
    from flaxres.training.loop import fit

    fit(config, workdir)


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluates the newest checkpoint of a run; see `flaxres.evaluate`."""
    weights, rest = value_of(joined(arguments), "--weights")
    description = "Evaluate the newest checkpoint of a run, every example once; or, with --config FILE --weights FILE, a file of weights."
    config, workdir = parse_run(rest, None, "flaxres evaluate", description)
    silence()
    from flaxres.training.hosts import leader
    from flaxres.training.loop import evaluate
    from flaxres.training.metrics import finite

    report = evaluate(config, workdir) if weights is None else evaluate(config, weights=weights)
    if leader():
        print(json.dumps(finite(dataclasses.asdict(report))))


def checkpoints(arguments: Sequence[str]) -> None:
    """Lists the checkpoints of a run and verifies each."""
    parser = Parser("flaxres checkpoints", description="List a run's checkpoints, verify every byte of them, and say where they come from.")
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument("--provenance", action="store_true", help="show the code, libraries, data, flags and devices of each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    silence()
    from flaxres.training.checkpoints import REFUSED, read_provenance, survey

    folder = pathlib.Path(chosen.workdir) / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"workdir {chosen.workdir!r} has no checkpoints: give the workdir of a run")
    facts, lines = [], []
    for found in survey(folder):
        size = sum(path.stat().st_size for path in found.path.rglob("*") if path.is_file())
        origin = {} if found.problem else read_provenance(found.path)
        facts.append({"step": found.step, "bytes": size, "problem": found.problem, "provenance": origin})
        lines.append(f"step {found.step:>9,}  {size / 2**20:>9,.1f} MiB  {found.problem or 'sound'}")
        if chosen.provenance:
            lines += [f"    {key}: {value}" for key, value in origin.items()]
    aside = sorted(path.name for path in (folder.parent / REFUSED).glob("*"))
    if aside:
        lines.append(f"set aside in {folder.parent / REFUSED}: {', '.join(aside)}")
    show(chosen.json, {"checkpoints": facts, "set_aside": aside}, lines or ["no checkpoint"])
    if problems := [fact for fact in facts if fact["problem"]]:
        raise InputError(f"{len(problems)} of {len(facts)} checkpoints do not verify; training goes on from the newest that does")


def convert(arguments: Sequence[str]) -> None:
    """Weights from a file or a run to safetensors in torchvision's and timm's naming."""
    parser = Parser("flaxres convert", description="Check weights against their model and write safetensors that flaxres, torchvision and timm load.")
    parser.add_argument("source", metavar="IN", help=".safetensors; .pth, .pt, .th (these need torch); or the workdir of a run")
    parser.add_argument("target", metavar="OUT", help=".safetensors")
    parser.add_argument("--model", help="the network that a file's weights are of, e.g. resnet50")
    chosen = parser.parse_args(arguments)
    silence()
    from flaxres import prediction
    from flaxres.weights.transfer import save_weights

    if os.path.isdir(chosen.source):  # noqa: PTH112 (false where it can't be read)
        predictor = prediction.from_workdir(chosen.source)
    elif chosen.model:
        predictor = prediction.from_weights(chosen.source, chosen.model, None, None)
    else:
        raise InputError("a file of weights needs --model, e.g. --model resnet50")
    save_weights(chosen.target, predictor.variables, predictor.model)
    print(f"{predictor.model.num_classes} classes: wrote {chosen.target}")


def add_origin(parser: argparse.ArgumentParser) -> None:
    """The options that name a network with its weights."""
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--workdir", help="a run of train.py: its newest checkpoint")
    origin.add_argument("--weights", help="a file of weights; needs --model")
    origin.add_argument("--tag", help="a tag on the hub, e.g. resnet50.a1_in1k")
    parser.add_argument("--model", help="the network that --weights are of")
    parser.add_argument("--size", type=int, help="with --weights: pixels of a side (224; 32 for the CIFAR networks)")
    parser.add_argument("--classes", help="with --weights: a text file with one class name a line")


def predictor_of(chosen: argparse.Namespace) -> "Predictor":
    """The network that the options of `add_origin` name."""
    if chosen.weights and not chosen.model:
        raise InputError("--weights needs --model, e.g. --model resnet50")
    silence()
    from flaxres import prediction

    if chosen.workdir:
        return prediction.from_workdir(chosen.workdir)
    if chosen.tag:
        return prediction.from_tag(chosen.tag)
    return prediction.from_weights(chosen.weights, chosen.model, chosen.size, chosen.classes)


def export(arguments: Sequence[str]) -> None:
    """A program that needs jax alone, with weights, class names, a card and a server."""
    parser = Parser(
        "flaxres export",
        description="Write a network as a program for any batch size and device; of a run, measure its accuracy too, as trained and as exported.",
    )
    add_origin(parser)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--logits", action="store_true", help="take normalised float32 and give logits, in place of uint8 and probabilities")
    parser.add_argument("--no-fold", action="store_true", help="keep batch norms apart from convolutions")
    parser.add_argument("--int8", action="store_true", help="kernels in 8 bits")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too, by jax2onnx")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    from flaxres import export as exporting

    form = exporting.Form(not chosen.logits, not chosen.no_fold, chosen.int8, chosen.onnx)
    exporting.require_ready(pathlib.Path(chosen.out), form)
    predictor = predictor_of(chosen)
    measured: dict[str, float] = {}
    sentences: list[str] = []
    if chosen.workdir:
        measured = exporting.accuracies(chosen.workdir, predictor, form)
        as_exported, as_trained = (f"{100 * measured[name]:.2f}%" for name in ("top1_exported", "top1_trained"))
        sentences = [f"top-1 {as_exported} of {measured['examples']:,} evaluation examples, {as_trained} as trained"]
    done = exporting.export(predictor, pathlib.Path(chosen.out), form, *sentences)
    names = ", ".join(sorted(path.name for path in done.folder.iterdir()))
    lines = [*sentences, f"wrote {done.folder} ({done.program_bytes / 1e6:.1f} MB, {done.folded} batch norms folded): {names}"]
    show(chosen.json, dataclasses.asdict(done) | {"folder": str(done.folder)} | measured, lines)


def predict(arguments: Sequence[str]) -> None:
    """The likeliest classes of some pictures."""
    parser = Parser("flaxres predict", description="Say what is in pictures: by a run, by a file of weights, or by a pretrained tag of timm's.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG or PNG files")
    add_origin(parser)
    parser.add_argument("--top", type=int, default=5, help="how many classes (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object: image -> [[class, probability], ...]")
    parser.add_argument("--plot", metavar="PNG", help="draw the pictures with their classes")
    chosen = parser.parse_args(arguments)
    if chosen.top < 1:
        raise InputError(f"--top={chosen.top}: the rule is > 0")
    predictor = predictor_of(chosen)
    from flaxres import prediction

    results = predictor(chosen.images, chosen.top)
    if chosen.plot:
        prediction.draw(chosen.images, results, predictor, chosen.plot)
    if chosen.json:
        print(json.dumps(dict(zip(chosen.images, results, strict=True))))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "class", "probability")
    for image, best in zip(chosen.images, results, strict=True):
        for i, (name, probability) in enumerate(best):
            table.add_row("" if i else image, name, f"{100 * probability:.2f}%", end_section=i == len(best) - 1)
    Console(markup=False).print(table)


def data(arguments: Sequence[str]) -> None:
    """Prepares datasets as ArrayRecord, tells about them, checks them, and makes their images smaller."""
    parser = Parser("flaxres data", description="Prepare datasets as ArrayRecord, and look at what is there.")
    texts = {
        data_prepare: "write a dataset as ArrayRecord, once",
        data_info: "splits, classes, sizes and digests of a prepared dataset; with --sheet a picture of what the network sees of it",
        data_verify: "compare a prepared dataset with the digests of its files, and read every record",
        data_shrink: "write a prepared dataset again with smaller images, which train faster",
    }
    names = {function: function.__name__.removeprefix("data_") for function in texts}
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(names.values()) + "}")
    parsers = {}
    for function, text in texts.items():
        name = names[function]
        command = parsers[name] = commands.add_parser(name, help=text.partition(";")[0], description=text)
        command.set_defaults(function=function)
        command.add_argument("name", help="digits, folder, cifar10, imagenet2012" + (", or any that TFDS has prepared" if name != "prepare" else ""))
        command.add_argument("--source", help="the folder of <split>/<class>/*.jpg, ImageNet's tars, or CIFAR-10's archive")
        command.add_argument("--data-dir", help="where prepared datasets are (TFDS's own folder)")
        command.add_argument("--json", action="store_true", help="print one JSON object")
    parsers["prepare"].add_argument(
        "--bad-images", choices=("skip", "error"), default="skip", help="what to do with an image that can't be decoded (skip)"
    )
    parsers["info"].add_argument("--sheet", metavar="PNG", help="draw a contact sheet of augmented samples")
    parsers["info"].add_argument("--config", metavar="FILE", help="with --sheet: the config whose crops and augmentation are drawn")
    parsers["verify"].add_argument("--decode", action="store_true", help="decode every image too")
    parsers["shrink"].add_argument("--short-side", type=int, default=256, metavar="PIXELS", help="of images that are larger (256)")
    parsers["shrink"].add_argument("--quality", type=int, default=90, help="of their JPEGs, 1 to 100 (90)")
    chosen = parser.parse_args(arguments)
    silence()
    chosen.function(chosen)


def data_prepare(chosen: argparse.Namespace) -> None:
    from flaxres.data.prepare import prepare

    place, tally = prepare(chosen.name, chosen.source, chosen.data_dir, bad_images=chosen.bad_images)
    kinds_found = {split: dict(counts) for split, counts in tally.kinds.items()}
    show(chosen.json, {"path": str(place), "files": kinds_found, "refused": dict(tally.refused)}, [*tally.lines(), f"prepared in {place}"])


def data_info(chosen: argparse.Namespace) -> None:
    from flaxres.data.sources import describe

    if chosen.config and not chosen.sheet:
        raise InputError("--config needs --sheet: it says what is drawn")
    facts = describe(chosen.name, chosen.source, chosen.data_dir)
    lines = [f"path: {facts['path']}", f"version: {facts['version']}"]
    for split, known in facts["splits"].items():
        digest = f", sha256 {known['sha256'][:16]}" if known["sha256"] else ", no digest: TFDS prepared it"
        lines.append(f"split {split}: {known['examples']:,} images, {known['bytes'] / 2**20:,.1f} MiB in {known['shards']} files{digest}")
    classes = facts["classes"]
    lines.append(f"{len(classes)} classes: " + ", ".join(classes[:20]) + (f", and {len(classes) - 20} more" if len(classes) > 20 else ""))
    if chosen.sheet:
        from flaxres.sheet import draw_sheet

        config = load_config(chosen.config) if chosen.config else Config()
        split = config.data.train_split if config.data.train_split.partition("[")[0] in facts["splits"] else next(iter(facts["splits"]))
        given = {"name": chosen.name, "source": chosen.source, "data_dir": chosen.data_dir, "train_split": split}
        draw_sheet(dataclasses.replace(config, data=dataclasses.replace(config.data, **given)), chosen.sheet)
        facts["sheet"] = chosen.sheet
        lines.append(f"drew {chosen.sheet}")
    show(chosen.json, facts, lines)


def data_verify(chosen: argparse.Namespace) -> None:
    from flaxres.data.sources import verify

    verdict = verify(chosen.name, chosen.source, chosen.data_dir, chosen.decode)
    sound = sum(state == "sound" for state in verdict.files.values())
    files = f"files: {sound} of {len(verdict.files)} agree with their digests" if verdict.files else "files: no digests, TFDS prepared this dataset"
    lines = [files] + [f"{name}: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) for name, kinds in verdict.kinds.items()]
    show(chosen.json, dataclasses.asdict(verdict), lines + verdict.problems)
    if verdict.problems:
        raise InputError(f"{len(verdict.problems)} problems, the first: {verdict.problems[0]}; delete the dataset's folder and prepare it again")


def data_shrink(chosen: argparse.Namespace) -> None:
    from flaxres.data.prepare import shrink
    from flaxres.data.sources import open_splits

    sources = {source.name.rpartition("/")[2]: source for source in open_splits(chosen.name, (), chosen.source, chosen.data_dir)}
    name, place, tally = shrink(sources, chosen.short_side, chosen.quality, chosen.data_dir)
    kinds_found = {split: dict(counts) for split, counts in tally.kinds.items()}
    facts = {"name": name, "path": str(place), "images": kinds_found}
    show(
        chosen.json, facts, [*tally.lines(), f"{'written to' if tally.kinds else 'already there:'} {place}", f"train on it with: --data.name {name}"]
    )


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
    from flaxres.bench import schedule

    target, rest = value_of(arguments, "--out")
    config, _ = parse_run(rest, None, "flaxres bench schedule", "Draw the learning rate and the size of pictures by epoch (--out FILE.png).")
    target = target or "schedule.png"
    facts = schedule(config, target)
    print("\n".join([*(f"{name}: {value}" for name, value in facts.items()), f"drew {target}"]))


def bench_rates(arguments: list[str]) -> None:
    steps, rest = value_of(arguments, "--steps")
    if steps is not None and not (steps.isdigit() and int(steps)):
        raise InputError(f"--steps={steps!r}: the rule is a whole number > 0")
    config, _ = parse_run(
        joined(rest), None, "flaxres bench rates", "Images a second of the step, of the input, and of both (--steps N a measurement)."
    )
    silence()
    from flaxres.bench import rates

    for name, value in rates(config, int(steps or 20)).items():
        print(f"{name}: {value:,.3f}")


def bench_plan(arguments: list[str]) -> None:
    import jax

    from flaxres.compiled import ENVIRONMENT, platform_of

    topology, rest = value_of(arguments, "--topology")
    asks = {"-h", "--help"} & set(rest)
    if topology is None and not asks:
        raise InputError("flaxres bench plan needs --topology, e.g. v5e:2x4, v5p:4x4x4, v6e:8x8 or h200:8")
    config, _ = parse_run(
        rest, None, "flaxres bench plan", "What a config's step moves and holds on accelerators that are not here (--topology v5e:16x16)."
    )
    for variable, text in ENVIRONMENT[platform_of(str(topology))].items():
        os.environ[variable] = f"{os.environ.get(variable, '')} {text}".strip() if variable == "XLA_FLAGS" else text
    jax.config.update("jax_platforms", "cpu")
    silence()
    from flaxres.bench import plan

    figures, kinds, kernels = plan(config, str(topology))
    for name, value in figures.items():
        print(f"{name}: {value:,.2f}")
    print("collectives by kind: " + (", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"))
    for kind, size, count in kernels:
        print(f"{size:10.1f} MB/image in {count:4d} x {kind}")
    print("it fits" if figures["fits"] else "it does not fit: lower train.batch_size, or set train.accumulate or model.remat")


def bench_inference(arguments: list[str]) -> None:
    parser = Parser(
        "flaxres bench inference", description="Latency and throughput by batch, beside torchvision and onnxruntime where they are installed."
    )
    parser.add_argument("--model", default="resnet50", help="a name of flaxres models (resnet50)")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8, 32), metavar="N")
    parser.add_argument("--size", type=int, help="pixels of a side (224; 32 for the CIFAR networks)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    keep_memory()
    use_compiler()
    silence()
    from flaxres.inference import PEERS, measure

    figures = measure(chosen.model, chosen.batches, chosen.size)
    lines = [f"{'batch':>6}{'':14}{'milliseconds':>14}{'images/s':>10}  ours is"]
    for batch in chosen.batches:
        for peer in ("", *PEERS):
            start = "_".join(part for part in (f"{chosen.model}_batch{batch}", peer) if part)
            if (ms := figures.get(f"{start}_milliseconds")) is not None:
                ratio = figures.get(f"{chosen.model}_batch{batch}_vs_{peer}")
                faster = "" if ratio is None else f"{ratio:.2f} x as fast"
                lines.append(f"{batch:>6}  {peer or 'flaxres':<12}{ms:>14.1f}{figures[f'{start}_images_per_second']:>10.1f}  {faster}")
    show(chosen.json, figures, lines)


BENCHES = {"schedule": bench_schedule, "rates": bench_rates, "plan": bench_plan, "inference": bench_inference}
BENCH = """usage: flaxres bench COMMAND --config FILE [--section.field VALUE ...]

  schedule  draw learning rate and picture size by epoch          --out schedule.png
  rates     images a second of the step, of the input, of both   --steps 20
  plan      memory and traffic on accelerators not here           --topology v5e:16x16, h200:8
  inference latency and throughput by batch, beside peers         --model resnet50 --batches 1 32

Measures a config before it is trained."""


def models(arguments: Sequence[str]) -> None:
    """Lists the models with their costs, counted."""
    from flaxres.models.count import multiply_accumulates, parameters
    from flaxres.models.registry import create_model, list_models, small_images

    parser = Parser("flaxres models", description="List the models whose names match a shell pattern, with their costs for one image.")
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--size", type=int, help="pixels of a side (224; 32 for the CIFAR networks)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    if not (names := list_models(chosen.pattern)):
        if set("*?[") & set(chosen.pattern):
            raise InputError(f"no model matches {chosen.pattern!r}: flaxres models lists all of them")
        raise unknown("model", chosen.pattern, list_models())
    if chosen.size is not None and chosen.size < 32:
        raise InputError(f"--size={chosen.size}: the rule is >= 32")
    if not chosen.json:
        print(f"{'name':<20}{'parameters':>13}{'GMACs':>9}{'pixels':>8}")
    facts = {}
    for name in names:
        # Under a scan the trace of a deep network is short, and the counts are the same.
        model, size = create_model(name, scan_blocks=True), chosen.size or (32 if small_images(name) else 224)
        facts[name] = {"parameters": parameters(model), "gmacs": round(multiply_accumulates(model, size) / 1e9, 3), "pixels": size}
        if not chosen.json:
            print(f"{name:<20}{facts[name]['parameters']:>13,}{facts[name]['gmacs']:>9.2f}{size:>8}", flush=True)
    if chosen.json:
        print(json.dumps(facts))


# What `flaxres.lab.EXPERIMENTS` has, told without importing it.
LAB = {
    "block": "the article's block: its fallback to the identity, and its gradient",
    "gradients": "what arrives of the gradient at each of 10 to 1,000 layers",
    "degradation": "errors by epoch of plain and residual networks of 20 to 56 layers",
    "lesion": "blocks taken out of trained networks; 250 of 300 bypassed",
    "paths": "what each block changes, and what passes it",
    "features": "feature maps of a photograph; a linear probe of each stage",
    "landscape": "the loss around a plain and a residual network",
    "all": "all of them, and a summary in Markdown (6 to 15 minutes on two cores)",
}


def lab(arguments: Sequence[str]) -> None:
    """Experiments on why skip connections work, with pictures, tables and numbers."""
    parser = Parser(
        "flaxres lab",
        description="Why skip connections work: run experiments, and write a picture, a table and the numbers of each.",
        epilog="\n".join(f"{name:<13}{text}" for name, text in LAB.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="one of those below, or all")
    parser.add_argument("--out", required=True, metavar="DIR", help="where pictures, tables and the networks that are trained go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of epochs and steps: 0.5 for a first look (1)")
    parser.add_argument("--data", default="digits", help="what networks are trained on: digits, or cifar10 (digits)")
    parser.add_argument("--source", help="where CIFAR-10's archive is; it is downloaded otherwise")
    parser.add_argument("--data-dir", help="where prepared datasets are (TFDS's own folder)")
    parser.add_argument("--image", help="features: a photograph of yours")
    parser.add_argument("--weights", help="features: a file of weights to look into; needs --model")
    parser.add_argument("--model", help="features: the network that --weights are of")
    parser.add_argument("--json", action="store_true", help="print one JSON object: experiment -> claims")
    chosen = parser.parse_args(arguments)
    if chosen.experiment not in LAB:
        raise unknown("experiment", chosen.experiment, LAB)
    if chosen.seed < 0:
        raise InputError(f"--seed={chosen.seed}: the rule is >= 0")
    keep_memory()
    silence()
    keep_compiled()
    use_compiler()
    from flaxres.lab import EXPERIMENTS
    from flaxres.lab.report import Settings, conduct, summary

    given = {name: value for name, value in vars(chosen).items() if name not in ("experiment", "json", "out")}
    settings = Settings(pathlib.Path(chosen.out), **given)
    picked = tuple(EXPERIMENTS) if chosen.experiment == "all" else (chosen.experiment,)
    facts = [conduct(name, EXPERIMENTS[name], settings) for name in picked]
    if chosen.experiment == "all":
        (settings.out / "summary.md").write_text(summary(facts))
        print(f"wrote {settings.out / 'summary.md'}", file=sys.stderr)
    if chosen.json:
        print(json.dumps({fact["experiment"]: {"seconds": fact["seconds"], "claims": fact["claims"]} for fact in facts}))


def show(as_json: bool, facts: dict[str, Any], lines: list[str]) -> None:
    print(json.dumps(facts) if as_json else "\n".join(lines))


class Parser(argparse.ArgumentParser):
    """An argparse parser whose refusals are ours: one line."""

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": lambda arguments: train(arguments, None, "flaxres train"),
    "evaluate": evaluate,
    "bench": bench,
    "checkpoints": checkpoints,
    "convert": convert,
    "data": data,
    "export": export,
    "lab": lab,
    "models": models,
    "predict": predict,
}
USAGE = """usage: flaxres COMMAND ...

  train        train a config, or go on with a run        flaxres train --config FILE --workdir DIR
  evaluate     measure a run's newest checkpoint          flaxres evaluate --workdir DIR
  checkpoints  list and verify a run's checkpoints        flaxres checkpoints DIR
  bench        measure a config before it is trained      flaxres bench schedule --config FILE
  convert      weights to torchvision/timm safetensors    flaxres convert IN OUT --model resnet50
  data         prepare datasets and look at them          flaxres data prepare folder --source DIR
  export       a program that needs jax alone             flaxres export --workdir DIR --out DIR
  lab          why skip connections work                  flaxres lab all --out DIR
  models       list the models                            flaxres models 'resnet*'
  predict      say what is in pictures                    flaxres predict IMAGE... --workdir DIR

flaxres COMMAND --help tells more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The `flaxres` command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else EXIT_REFUSED

    def run() -> None:
        if words[0] not in COMMANDS:
            raise unknown("command", words[0], COMMANDS)
        COMMANDS[words[0]](words[1:])

    return refusing(run)


if __name__ == "__main__":
    sys.exit(main())
