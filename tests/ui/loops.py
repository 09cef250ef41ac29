"""Gradio opens an event loop per Blocks and never closes it, unless one is running: a page is built inside a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


def in_a_loop(make: Callable[[], Any]) -> Any:
    async def run() -> Any:
        return make()

    return asyncio.run(run())
