"""The page about runs: what it says, what it escapes, and what it refuses."""

import html.parser
import json
import pathlib
import re
import shlex
import shutil
from typing import Any

import numpy as np
import pytest

from flaxres.cli import main
from flaxres.report import confused, curves
from flaxres.report.runs import Evaluation, read_runs
from tests.report.conftest import HOSTILE, Pages


class Elements(html.parser.HTMLParser):
    """Lists the elements of a page with their attributes, and the text outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def text(pages: Pages) -> str:
    return pages.page.read_text()


def evaluation(workdir: pathlib.Path) -> dict[str, Any]:
    return json.loads((workdir / "evaluation" / "evaluation.json").read_text())


def test_names_are_text(text: str) -> None:
    found = Elements(text)
    for name in (*HOSTILE, "<i>coarse", "<b onclick=owned>"):
        assert name in found.text
    assert [tag for tag, _ in found.elements].count("script") == 1
    assert not [tag for tag, _ in found.elements if tag in ("i", "iframe", "object", "form")]
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    assert "49" not in re.findall(r'title="([^"]*) &amp; ', text)


def test_nothing_is_fetched(text: str) -> None:
    for tag, attributes in Elements(text).elements:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            if value := attributes.get(name):
                assert value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    assert "default-src 'none'" in text


def test_the_page_says_what_the_evaluation_says(text: str, pages: Pages) -> None:
    for workdir in pages.workdirs:
        content = evaluation(workdir)
        assert f"mean average precision <b>{100 * content['mean_average_precision']:.2f}%" in text
        summary = json.loads((workdir / "summary.json").read_text())
        assert f'data-value="{summary["images_per_second"]}"' in text
        digest = json.loads((workdir / "checkpoints/2/flaxres_digests.json").read_text())["sha256"]
        assert digest in text
    found = Elements(text).text
    assert f"flaxres train --config {pages.workdirs[0] / 'config.json'}" in found
    assert f"{pages.workdirs[1]}-again'" in found
    assert "train.log_every_steps" in found
    assert text.count('<td class="differs">') == 2
    assert text.count("data:image/webp;base64,") == 1  # one sheet: the same data for both


def test_the_cells_of_the_matrix_are_the_confusions(text: str, pages: Pages) -> None:
    first = text[: text.index('id="evaluation-2"')]
    rows = re.findall(r'<tr data-images="(\d+)">(.*?)</tr>', first)
    cells = [re.findall(r"<td[^>]*>(\d*)</td>", row) for _, row in rows]
    assert (
        sum(int(cell or 0) for row in cells for cell in row)
        == evaluation(pages.workdirs[0])["examples"]
    )
    # Classes are in the order of their names.
    sizes = {name: 3 + number for number, name in enumerate(HOSTILE)}
    assert [int(images) for images, _ in rows] == [sizes[name] for name in sorted(HOSTILE)]
    right = sum(int(row[i] or 0) for i, row in enumerate(cells))
    examples = evaluation(pages.workdirs[0])["examples"]
    assert right / examples == pytest.approx(evaluation(pages.workdirs[0])["top"]["1"])


def test_of_many_classes_the_most_confused_are_shown() -> None:
    names = [f"class {i}" for i in range(9)]
    pairs = [(name, name, 10) for name in names]
    pairs += [("class 7", "class 2", 3), ("class 4", "class 7", 1), ("class 1", "class 0", 1)]
    found = Evaluation({}, [{"class": name} for name in names], pairs, [])
    matrix = confused.matrix(found, 3)
    assert matrix.classes == ["class 0", "class 2", "class 7"]
    assert matrix.counts == [[10, 0, 0], [0, 10, 0], [0, 3, 10]]
    assert matrix.totals == [10, 10, 13]
    assert matrix.hidden == 6


def test_long_runs_give_short_curves() -> None:
    noise = np.random.default_rng(0).random(20_000)
    rows = [{"epoch": i / 100, "train/loss": value} for i, value in enumerate(noise.tolist())]
    drawn = dict(curves.draw_curves([rows, []]))
    assert len(drawn["Loss"]) < 40_000
    assert 250 < drawn["Loss"].count("\nL ") < 350
    assert "currentColor" in drawn["Loss"]


def test_runs_that_are_not_finished_or_not_evaluated_have_a_page(
    pages: Pages, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "my run"
    shutil.copytree(
        pages.workdirs[0],
        run,
        ignore=shutil.ignore_patterns("evaluation", "checkpoints", "summary*"),
    )
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"name": "digits", "source": None, "copy": True, "eval_split": "test"}
    config["data"]["data_dir"] = str(tmp_path / "data")
    (run / "config.json").write_text(json.dumps(config))
    with (run / "metrics.jsonl").open("a") as file:  # a line that is no metric is left out
        file.write('{"step": 3, "train/loss": "low"}\n{"step": 4, "epoch": NaN}\n')
    assert main(["report", str(run)]) == 0
    assert f"wrote {run / 'report.html'}" in capfd.readouterr().out
    page = Elements((run / "report.html").read_text()).text
    assert "There is no full evaluation" in page
    assert f"flaxres evaluate --full --workdir '{run}'" in page
    assert "(not finished)" in page
    assert "The training images can't be drawn here" in page
    assert not (tmp_path / "data").exists()  # nothing was prepared


# Name of a run, its file, and what is replaced there by what.
BROKEN = (
    ("words", "summary.json", '"seconds": ', '"seconds": "long", "_": '),
    ("noscore", "evaluation/evaluation.json", '"ece"', '"eve"'),
    ("nobins", "evaluation/evaluation.json", '"counts": [', '"counts": [1,'),
    ("nobin", "evaluation/evaluation.json", '"edges": [', '"edges": ["a",'),
    ("nosplit", "evaluation/evaluation.json", '"split"', '"spilt"'),
    ("noname", "evaluation/mistakes.jsonl", '"predicted"', '"guessed"'),
    ("noobject", "evaluation/evaluation.json", "{", "[{"),
    ("nocolumn", "evaluation/per_class.csv", "recall", "call"),
    ("nonumber", "evaluation/confusion.csv", ",3\n", ",three\n"),
    ("nolines", "evaluation/mistakes.jsonl", '"confidence"', '"confident"'),
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nothing", "'nothing' is not a folder"),
        ("empty", "config.json' does not exist: give the workdir of a run"),
        ("run run", "'run' is named twice"),
        ("run --out nowhere/x.html", "--out 'nowhere/x.html' can't be written"),
        ("", "the following arguments are required: RUN"),
        ("cut", "summary.json' can't be read"),
        ("words", "summary.json' can't be read (seconds='long' is no number)"),
        *((name, "run flaxres evaluate --full again") for name, *_ in BROKEN[1:]),
        ("r1 r2 r3 r4 r5 r6 r7", "7 runs: a page can show 6"),
    ],
)
def test_mistakes_are_one_line(
    words: str,
    message: str,
    pages: Pages,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in words.split():
        if name.isalnum() and name not in ("nothing", "empty") and not (tmp_path / name).exists():
            shutil.copytree(pages.workdirs[0], tmp_path / name)
    if name := {"cut": "summary.json"}.get(words):
        (tmp_path / "cut" / name).write_text('{"top1": 0.')
    for name, file, before, after in BROKEN:
        if name == words:
            path = tmp_path / name / file
            text = path.read_text()
            assert before in text
            path.write_text(text.replace(before, after))
    assert main(["report", *words.split()]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1


def test_other_test_sets_are_a_table(pages: Pages, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pages.workdirs[0], run)
    images = str(pages.workdirs[0].parent / "photos" / "train")
    words = ["evaluate", "--workdir", str(run), "--full", "--images", images]
    assert main(words) == 0
    assert main(["report", str(run), "--no-sheet"]) == 0
    page = (run / "report.html").read_text()
    content = json.loads((run / "evaluation-train" / "evaluation.json").read_text())
    assert content["examples"] == 6 + 7 + 8 + 9
    row = page[page.index('id="others"') :]
    row = row[row.index("<tbody>") : row.index("</tbody>")]
    cells = [text.strip() for text in Elements(row).text.split("\n") if text.strip()]
    assert cells[:2] == ["run", "train"]
    assert f"{100 * content['top']['1']:.2f}%" in "".join(cells[2:])
    # The evaluation of the run itself has no such table.
    assert 'id="others"' not in pages.page.read_text()


def test_a_folder_that_is_not_there_is_refused_before_anything_is_drawn(
    pages: Pages, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flaxres.report.page.render", None)
    target = str(tmp_path / "nowhere" / "x.html")
    assert main(["report", str(pages.workdirs[0]), "--out", target]) == 2


def test_the_command_is_as_it_was_typed(pages: Pages, tmp_path: pathlib.Path) -> None:
    (run,) = read_runs([str(pages.workdirs[0])])
    for words, expected in (
        (["/usr/bin/flaxres", "train", "--workdir", "a b"], "flaxres train --workdir 'a b'"),
        (["/x/train.py", "--config", "digits"], "python train.py --config digits"),
        (["/x/flaxres/cli/__main__.py", "train"], "python -m flaxres.cli train"),
        (["/x/mine.py"], "python /x/mine.py"),
        ([], ""),
    ):
        run.checkpoint["provenance"]["command"] = words
        assert run.command == expected


@pytest.mark.slow
def test_the_command_on_the_page_does_the_run_again(pages: Pages, tmp_path: pathlib.Path) -> None:
    shutil.copytree(pages.workdirs[0], tmp_path / "run")
    (run,) = read_runs([str(tmp_path / "run")])
    words = shlex.split(run.again)
    assert words[0] == "flaxres"
    assert main(words[1:]) == 0
    (again,) = read_runs([str(tmp_path / "run-again")])
    assert again.config == run.config
    for name in ("train/loss", "eval/loss", "train/gradient_norm"):
        values = [row[name] for row in run.metrics if name in row]
        assert values
        assert [row[name] for row in again.metrics if name in row] == values
