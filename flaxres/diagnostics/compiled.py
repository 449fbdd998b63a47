"""Traffic and memory of compiled steps, read from their optimised HLO."""

import collections
import math
import re
import time
from typing import Any, NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move nothing.
STILL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
SLICES = {"slice", "dynamic-slice"}
# The first of these that a fusion contains gives its kind.
FUSED = {"convolution": "convolution", "reduce": "reduction"}


class CompiledFacts(NamedTuple):
    """Facts of a compiled step.

    Attributes:
      figures: by name, e.g. `megabytes_per_image` and `memory_gigabytes`.
      collectives: number by kind.
      kernels: (kind, megabytes an image, number), the largest first.
    """

    figures: dict[str, float]
    collectives: dict[str, int]
    kernels: list[tuple[str, float, int]]


class Instruction(NamedTuple):
    """A line of an HLO computation; `kind` is the type of its result."""

    name: str
    kind: str
    operation: str
    operands: list[str]
    line: str


def compile_facts(lowered: Any, images: int, gigabytes: float) -> CompiledFacts:
    """Compiles a step and returns its facts.

    Args:
      lowered: the step.
      images: images of a step on a device.
      gigabytes: memory of a device.
    """
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    program, memory, cost = compiled.as_text(), compiled.memory_analysis(), compiled.cost_analysis()
    moved, count = traffic(program)
    counts = collectives(program)
    held = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    figures = {"megabytes_per_image": sum(moved.values()) / images / 1e6}
    if cost:  # the compiler's own model, where it has one
        figures["megabytes_per_image"] = cost["bytes accessed"] / images / 1e6
        figures["gigaflop_per_image"] = cost["flops"] / images / 1e9
    figures |= {
        "temporary_gigabytes": memory.temp_size_in_bytes / 1e9,
        "memory_gigabytes": held / 1e9,
        "fits": float(held < gigabytes * 1e9),
        "collectives": sum(counts.values()),
        "compile_seconds": seconds,
    }
    kernels = [(kind, size / images / 1e6, count[kind]) for kind, size in moved.most_common(10)]
    return CompiledFacts(figures, counts, kernels)


def traffic(program: str) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Returns the bytes that kernels read and write, and the number of kernels, by kind.

    Bytes are counted as if nothing stayed in a cache.

    Args:
      program: optimised HLO.
    """
    parts = computations(program)
    sizes = instruction_bytes(parts)
    moved, count = collections.Counter[str](), collections.Counter[str]()
    for each in parts["ENTRY"]:
        if each.name in sizes:
            label = kind_of_kernel(each, _fused(each, parts))
            count[label] += 1
            moved[label] += sizes[each.name]
    return moved, count


def instruction_bytes(parts: dict[str, list[Instruction]]) -> dict[str, int]:
    """Returns the bytes that each instruction of an entry computation reads and writes, by name.

    Instructions that move nothing, and starts of asynchronous ones, are left out.

    Args:
      parts: `computations` of an optimised program.
    """
    sizes: dict[str, int] = {}
    moved: dict[str, int] = {}
    for each in parts["ENTRY"]:
        sizes[each.name] = array_bytes(each.kind)
        if each.operation in STILL or each.operation.endswith("-start"):
            continue
        if each.operation.endswith("-done"):
            # An asynchronous copy, into the inside of a TPU or out of it, counts once.
            moved[each.name] = array_bytes(each.kind, outside=False)
            continue
        fused = _fused(each, parts)
        slices = {0: sizes[each.name]} if each.operation in SLICES else sliced_bytes(fused)
        reads = (slices.get(i, sizes.get(operand, 0)) for i, operand in enumerate(each.operands))
        moved[each.name] = sizes[each.name] + sum(reads)
    return moved


def _fused(each: Instruction, parts: dict[str, list[Instruction]]) -> list[Instruction]:
    called = re.search(r" calls=%([\w.-]+)", each.line)
    return parts[called[1]] if called else []


def collectives(program: str) -> dict[str, int]:
    """Returns the number of each kind of communication in a program."""
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", program)) for kind in COLLECTIVES}
    return {kind: count for kind, count in counts.items() if count}


def computations(program: str) -> dict[str, list[Instruction]]:
    """Returns an HLO program's computations by name; the entry is 'ENTRY'."""
    result: dict[str, list[Instruction]] = {}
    form = r"^((?:ENTRY )?%[\w.-]+) \(.*\{\n((?:.*\n)*?)\}"
    for header, body in re.findall(form, program, re.MULTILINE):
        name = "ENTRY" if header.startswith("ENTRY") else header.removeprefix("%")
        lines = map(_instruction, body.splitlines())
        result[name] = [line for line in lines if line is not None]
    return result


def _instruction(line: str) -> Instruction | None:
    parts = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line)
    if not parts:
        return None
    name, kind, operation, rest = parts.groups()
    operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
    return Instruction(name, kind, operation, operands, line)


def array_bytes(kind: str, outside: bool = True) -> int:
    """Returns the bytes of an HLO type or of a tuple of types.

    Args:
      kind: the type.
      outside: leaves out arrays whose layout says S(1), which lie inside a TPU.

    Examples:
      >>> array_bytes("bf16[128,56,56,64]{3,2,1,0}")
      51380224
    """
    arrays = re.findall(r"([a-z]+)(\d*)\w*\[([\d,]*)\](\{[^}]*\})?", kind)
    return sum(
        math.prod(map(int, filter(None, shape.split(",")))) * max(int(bits or 8) // 8, 1)
        for _, bits, shape, layout in arrays
        if not (outside and "S(1)" in layout)
    )


def sliced_bytes(computation: list[Instruction]) -> dict[int, int]:
    """Returns parameter number -> bytes for parameters that are only sliced, at most their size."""
    result = {}
    for parameter in computation:
        if parameter.operation != "parameter":
            continue
        users = [each for each in computation if parameter.name in each.operands]
        if users and all(_slices(each, parameter) for each in users):
            number = int(parameter.line.partition(" parameter(")[2].partition(")")[0])
            size = sum(array_bytes(each.kind) for each in users)
            result[number] = min(size, array_bytes(parameter.kind))
    return result


def _slices(each: Instruction, parameter: Instruction) -> bool:
    return each.operation in SLICES and each.operands[0] == parameter.name


def kind_of_kernel(each: Instruction, fused: list[Instruction]) -> str:
    """Returns the kind of an instruction; `fused` are the parts of a fusion."""
    if each.operation == "custom-call":
        called = re.search(r'custom_call_target="([^"]+)"', each.line)
        if called:
            return called[1]
    if each.operation == "fusion":
        parts = {part.operation for part in fused}
        copies = any(word in each.name for word in ("copy", "transpose"))
        other = "copy" if copies else "elementwise"
        return "fusion: " + next((kind for part, kind in FUSED.items() if part in parts), other)
    return each.operation.removesuffix("-done")
