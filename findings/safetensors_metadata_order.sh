#!/usr/bin/env bash
# safetensors writes the same tensors and metadata as other bytes from call to call.
#
# Packages: safetensors 0.8.0, numpy 2.4.6, Python 3.11 or newer.
# Guess:    the same dictionary gives the same file: tensors are sorted, and the header is JSON in the
#           order of the given metadata, or sorted.
# Seen:     with two or more keys of metadata, their order in the header changes at random, within one
#           process too. Tensors keep their places; with one key all files are equal.
# Matters:  the SHA-256 of a weight file is no identity of its content. Caches, git, registries and
#           reproducible builds see a change where there is none.
#
# Output seen (numbers of different files among 64 saves; the second varies up to 24):
#   one key of metadata:   1
#   four keys of metadata: 23
#   tensors and metadata read back equal: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import json
import struct

import numpy as np
from safetensors import numpy as st

tensors = {"b": np.arange(3.0), "a": np.ones((2, 2), np.float32)}
SAVES = 64


def files(metadata):
    return [st.save(tensors, metadata) for _ in range(SAVES)]


def header(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size])


one, four = files({"format": "pt"}), files(dict.fromkeys(("format", "model", "date", "licence"), "x"))
print("one key of metadata:  ", len(set(one)))
print("four keys of metadata:", len(set(four)))
same = all(header(content) == header(four[0]) for content in four)
print("tensors and metadata read back equal:", same)
assert same and len(set(one)) == 1, "the behaviour changed"
assert len(set(four)) > 1, "the behaviour changed"
PYTHON
