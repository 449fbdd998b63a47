"""Runs `python -m flaxres.cli`."""

import sys

from flaxres.cli import main

sys.exit(main())
