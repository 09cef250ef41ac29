"""Keeps diffusers, transformers and the Hub client from writing to the terminal while we call them.

What a user must know, SDVQ says itself, as an error or a Notice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

LOGGERS = ("diffusers", "transformers", "huggingface_hub", "bitsandbytes", "sdnq")  # the last two where installed


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only, no progress bars; what was set before comes back afterwards."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    bars = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for log in bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for log in bars:
            log.enable_progress_bar()
