"""The entry point: runs a command; a user's mistake is one line and exit code 2, never a traceback."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any

import typer

from sdvq_core.cli import asking, drawing, making  # noqa: F401 - they add their commands
from sdvq_core.cli.printing import say
from sdvq_core.cli.program import app
from sdvq_core.errors import SdvqError

_UsageError: Any = typer.BadParameter.__mro__[1]  # of the click that typer uses, which may be its own


def main() -> None:
    """Entry point: run, and turn a user's mistake into one line and exit code 2."""
    _quiet()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except _UsageError as error:
        _fail(error.format_message())
    except SdvqError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        say("stopped")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(text: str) -> None:
    say("error: " + " ".join(text.split()))
    sys.exit(2)


def _quiet() -> None:
    """Other libraries' chatter stays off a command's output."""
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which diffusers imports where it is installed
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
