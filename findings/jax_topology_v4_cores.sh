#!/usr/bin/env bash
# A described TPU v4 has two devices a chip, where a described v5p has one: a program that is compiled
# for it ahead of time is one for the cores.
#
# Packages: jax 0.11.2, libtpu 0.0.48.1; Python 3.12.
# Guess:    get_topology_desc("v4:2x2x1") names four chips and gives four devices, as JAX shows them on
#           such a machine, where both cores of a chip are one device ("megacore"). v3's chips have two
#           devices, those of v5p, whose cores are joined as well, have one.
# Seen:     eight devices, each a core. chip_config_name="megacore" gives four. v5p gives four with and
#           without that name, and eight with "legacy", which is v4's default. tpu7x, whose chips JAX
#           shows as two devices, gives eight.
# Matters:  a mesh of the described devices is twice the size of the machine's: batches are divided by
#           twice as many, and bytes and memory "of a device" are a core's. Nothing fails.
#
# Output seen:
#   v3:2x2 8
#   v4:2x2x1 8
#   v4:2x2x1 megacore 4
#   v5p:2x2x1 4
#   v5p:2x2x1 megacore 4
#   v5p:2x2x1 legacy 8
#   tpu7x:2x2x1 8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.11.2 libtpu==0.0.48.1
cd "$folder"
TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { tail -n 5 "$folder/log"; exit 1; }
from jax.experimental import topologies

expected = {
    ("v3:2x2", None): 8,
    ("v4:2x2x1", None): 8,
    ("v4:2x2x1", "megacore"): 4,
    ("v5p:2x2x1", None): 4,
    ("v5p:2x2x1", "megacore"): 4,
    ("v5p:2x2x1", "legacy"): 8,
    ("tpu7x:2x2x1", None): 8,
}
seen = {}
for name, cores in expected:
    options = {} if cores is None else {"chip_config_name": cores}
    described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    seen[name, cores] = len(described.devices)
    print(name, *([] if cores is None else [cores]), len(described.devices))
assert seen == expected, "the behaviour changed"
PYTHON
