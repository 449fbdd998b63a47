"""Printing never ends a run, and the exit code tells what was lost."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from flaxres import Config, TrainConfig
from flaxres.training.display import Display
from flaxres.training.metrics import Writer, read_metrics
from flaxres.training.signals import stop_signals

ROOT = pathlib.Path(__file__).parents[1]
FLAXRES = [sys.executable, "-m", "flaxres.cli"]
LIBRARY = """
import sys, json
from flaxres.training.display import Display
from flaxres.printing import say
import os
if "NONE" in os.environ: sys.stderr = None
with Display(3, 0, True, False) as display:
    for step in range(5):
        display.say(f"step {step} \\u2713 \\udcff")
        say("a line")
print("done", file=sys.__stdout__, flush=True)
"""


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command line of bash; its exit code is that of the last command that failed."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT,
        env=os.environ | {"PY": sys.executable, "CODE": LIBRARY} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_reader_that_has_enough_is_no_error() -> None:
    done = shell("$PY -m flaxres.cli configs | head -1")
    assert done.stderr == ""
    assert done.returncode == 0


def test_lost_output_is_an_error_of_one_line() -> None:
    done = shell("$PY -m flaxres.cli configs >/dev/full")
    assert done.returncode == 74
    assert done.stderr.count("\n") == 1
    assert "the output can't be written (No space left on device)" in done.stderr


@pytest.mark.parametrize(
    ("redirection", "environment"),
    [
        ("2>/dev/full", {}),
        ("2>&-", {}),
        ("2> >(exit 0)", {}),
        ("", {"NONE": "1"}),
        ("2>&1", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("2>&1", {"PYTHONIOENCODING": "ascii:strict"}),
    ],
)
def test_the_lines_of_a_run_never_end_it(redirection: str, environment: dict[str, str]) -> None:
    done = shell(f'sleep 0.1; $PY -c "$CODE" {redirection}', **environment)
    assert done.stdout.endswith("done\n"), done.stderr


def test_commands_print_in_ascii_what_the_terminal_lacks() -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell("$PY -m flaxres.cli checkpoints $'/nothing/\\xff\\xc3\\xa9'", **ascii_only)
    assert done.returncode == 2
    assert "has no checkpoints" in done.stderr


def test_a_closed_stderr_is_not_given_to_the_next_file() -> None:
    code = "from flaxres.printing import safe_streams\n"
    code += "with safe_streams(): print(open('/dev/null').fileno())"
    assert int(shell('$PY -c "$CODE" 2>&-', CODE=code).stdout) > 2


@pytest.mark.parametrize("operation", ["write", "flush"])
def test_tensorboard_that_fails_is_said_once(
    operation: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboardX.record_writer import RecordWriter

    lines: list[str] = []
    writer = Writer(tmp_path, 0, Config(), lines.append)
    writer.write(1, 0.0, {"loss": 1.0})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, operation, full)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    for step in range(2, 301):
        writer.write(step, 0.0, {"loss": 1.0})
        if step % 100 == 0:
            writer.flush()
    writer.close()
    assert len(lines) == 1
    assert "TensorBoard gets no more metrics" in lines[0]
    assert len(read_metrics(tmp_path)) == 300


def test_lines_that_are_no_metrics_are_left_out_and_counted(tmp_path: pathlib.Path) -> None:
    content = b'{"step": 1}\n\n[3]\n{"loss": 1}\n\xff\xfe\n{"step": 2}\n{"step": 9}\n{"st'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 9]
    lines: list[str] = []
    quiet = Config(train=TrainConfig(tensorboard=False))
    Writer(tmp_path, 5, quiet, lines.append).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert len(lines) == 1
    assert "left out 4 lines of" in lines[0]


def test_a_terminal_that_closes_stops_a_run_as_a_signal_does() -> None:
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.is_set()


def test_the_end_of_the_interpreter_prints_nothing() -> None:
    program = "import flaxres.printing as printing; print('text', file=printing.STDERR)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "text\n")


def test_a_display_outlives_its_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Display(3, 0, True, True) as display:
        display.say("nobody reads this")


def test_threads_print_nothing_after_the_last_line() -> None:
    program = """
import sys, threading, time
from flaxres.printing import safe_streams, say_last
sys.setswitchinterval(1e-6)
def complain():
    while True:
        sys.stderr.write("a thread\\n")
with safe_streams():
    for _ in range(4):
        threading.Thread(target=complain, daemon=True).start()
    time.sleep(0.1)
    print("output", end="")
    say_last("the last \\u2713", 74)
"""
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (74, "output")
        assert done.stderr.splitlines()[-1] == "the last \u2713"
