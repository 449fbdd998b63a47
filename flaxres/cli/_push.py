"""`flaxres push`: weights to the Hugging Face hub."""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence

from flaxres.cli._process import silence
from flaxres.cli._words import Parser
from flaxres.errors import InputError
from flaxres.paths import expanded
from flaxres.remote import is_address


def push(arguments: Sequence[str]) -> None:
    """Uploads the weights of a run, or a folder in the hub's form."""
    parser = Parser(
        "flaxres push",
        description="Upload a run's weights to the Hugging Face hub, with a model card and in the "
        "form that flaxres and timm load. The token is that of `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument(
        "source", metavar="DIR", help="workdir of a finished run, or folder of convert --hub"
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="created if it does not exist")
    parser.add_argument(
        "--private", action="store_true", default=None, help="if it is created, make it private"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch (main)")
    parser.add_argument("--message", default="Upload weights", help="subject of the commit")
    parser.add_argument(
        "--license", default="", help="of a run's weights, for the model card: apache-2.0"
    )
    parser.add_argument(
        "--dry-run", metavar="OUT", help="write the folder there, and upload nothing"
    )
    chosen = parser.parse_args(arguments)
    silence()
    from flaxres.weights.push import push_to_hub, require_ready

    if not is_address(chosen.source) and not expanded(chosen.source).is_dir():
        raise InputError(
            f"folder {chosen.source!r} does not exist: give the workdir of a run, or a folder of "
            "flaxres convert --hub"
        )
    if not chosen.dry_run:
        require_ready(chosen.repository)
    with tempfile.TemporaryDirectory() as place:
        folder = _folder(chosen, pathlib.Path(place, "folder"))
        if chosen.dry_run:
            print(f"wrote {folder}; nothing was uploaded")
            return
        address = push_to_hub(
            folder,
            chosen.repository,
            private=chosen.private,
            revision=chosen.revision,
            message=chosen.message,
        )
    print(f"pushed: {address}")


def _folder(chosen: argparse.Namespace, place: pathlib.Path) -> pathlib.Path:
    """Returns the folder to upload; a run's is written first."""
    from flaxres.inference.about import about_run
    from flaxres.inference.runs import read_run
    from flaxres.training.staging import local
    from flaxres.training.workdir import CHECKPOINTS
    from flaxres.weights.hub_folder import save_pretrained

    source = local(chosen.source)
    if not (source / CHECKPOINTS).is_dir():
        if chosen.license or chosen.dry_run:
            raise InputError(
                "--license and --dry-run are for the workdir of a run: the folder "
                f"{chosen.source!r} is uploaded as it is"
            )
        return source
    about = about_run(source)
    (model, variables, preprocess, classes), config = read_run(source)
    folder = expanded(chosen.dry_run) if chosen.dry_run else place
    save_pretrained(
        folder,
        model,
        variables,
        preprocess,
        classes,
        about=about,
        license=chosen.license,
        multi_label=config.data.multi_label,
    )
    return folder
