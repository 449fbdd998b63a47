#!/usr/bin/env bash
# Offline, W&B has nothing of the last seconds on disk when the training process is killed.
#
# Packages: wandb 0.31.0, Python 3.11 or newer.
# Guess:    `run.log` hands a row to wandb-core, a process of its own that writes the .wandb file. A
#           SIGKILL of the training process therefore loses no row that was logged seconds before.
# Seen:     wandb-core keeps what it got in memory, writes about every 15 seconds, and ends with the
#           training process without writing. With rows logged and 5 seconds of rest before the kill,
#           the file has 7 bytes, its header: not even the settings of the run. With 25 seconds of
#           rest it has the rows but the last one.
# Matters:  preempted machines kill. The curve of an offline run then ends up to 15 seconds and a row
#           early, and a run of less than that is lost as a whole. `resume="allow"` does not help:
#           offline, the next process starts a new file and `run.step` is 0. What must survive belongs
#           into a file of one's own, and back into the logger at the next start.
#
# Output seen:
#   rest of 5 s:  7 bytes, 0 of 7 rows
#   rest of 25 s: 6 of 7 rows
#   resumed offline: step 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q wandb==0.31.0
cd "$folder"
export WANDB_MODE=offline WANDB_SILENT=true
cat > train.py <<'PYTHON'
import os
import signal
import sys
import time

import wandb

folder, seconds = sys.argv[1], float(sys.argv[2])
os.makedirs(folder, exist_ok=True)
run = wandb.init(project="kills", id="one", dir=folder, resume="allow")
if not seconds:
    print("resumed offline: step", run.step)
    assert run.step == 0, "the behaviour changed"
for step in range(1, 8):
    run.log({"loss": 1 / step}, step=step)
if seconds:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)
run.finish()
PYTHON
cat > rows.py <<'PYTHON'
# The file is LevelDB's log behind a header of 7 bytes: blocks of 32 KiB of parts of records, each
# with a checksum, a length and a kind (1 whole, 2 first, 3 middle, 4 last).
import pathlib
import struct
import sys

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, struct.Struct("<IHB")
(path,) = pathlib.Path(sys.argv[1]).rglob("*.wandb")
content = path.read_bytes()
rows, at, text = 0, 7, b""
while at + HEADER.size <= len(content):
    if BLOCK - at % BLOCK < HEADER.size:
        at += BLOCK - at % BLOCK
        continue
    _, length, kind = HEADER.unpack_from(content, at)
    at += HEADER.size
    text += content[at : at + length]
    at += length
    if at <= len(content) and kind in (1, 4):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(text)
        rows += record.WhichOneof("record_type") == "history"
        text = b""
print(len(content), rows)
PYTHON
for seconds in 5 25; do
  "$folder/venv/bin/python" train.py "rest$seconds" "$seconds" > /dev/null 2>&1 || true
  sleep 2
done
read -r size rows < <("$folder/venv/bin/python" rows.py rest5)
echo "rest of 5 s:  $size bytes, $rows of 7 rows"
[ "$size" -eq 7 ] || { echo "the behaviour changed"; exit 1; }
read -r size rows < <("$folder/venv/bin/python" rows.py rest25)
echo "rest of 25 s: $rows of 7 rows"
[ "$rows" -eq 6 ] || { echo "the behaviour changed"; exit 1; }
"$folder/venv/bin/python" train.py rest25 0
