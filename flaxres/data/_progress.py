"""The progress bar of work on datasets."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxres.printing import STDERR


def progress_bar() -> Progress:
    """Returns a progress bar on stderr that shows names as they are, without markup."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=STDERR, highlight=False, markup=False))
