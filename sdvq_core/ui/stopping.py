"""Stop: a run that is asked to ends by its own last state. The page's stream stays open, nothing it waits for is lost.

Gradio's `cancels` breaks the stream off and forgets what else the session waits for, such as a second Generate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import gradio as gr

State = list[Any]
# What is being computed cannot be broken off; the word stands until the run's own last state replaces it.
JS_STOPPING = """() => {
  const find = name => document.querySelector(`#status ${name}`);
  find('.status-head').textContent = 'Stopping';
  find('.status-detail').textContent = 'What is being computed at this moment is finished first.';
  return [];
}"""


class Stops:
    """The running work of every session, and who wants it to end."""

    def __init__(self) -> None:
        self._asked: dict[str | None, Event] = {}

    def ask(self, request: gr.Request) -> Any:
        """The session's run shall end; nothing happens where none is running -> the button."""
        asked = self._asked.get(request.session_hash)
        if asked is not None:
            asked.set()
        return gr.update(interactive=False)

    def stoppable(self, states: Callable[..., Iterator[State]], last: Callable[[State], State]) -> Callable[..., Any]:
        """`states` as a handler that ends when it is asked to, with what `last` makes of the state that it was in."""

        def run(request: gr.Request, *values: Any) -> Iterator[State]:
            asked = self._asked[request.session_hash] = Event()
            work = states(*values)
            try:
                for state in work:
                    if asked.is_set():
                        yield last(state)
                        return
                    yield state
            finally:
                if self._asked.get(request.session_hash) is asked:
                    del self._asked[request.session_hash]
                work.close()  # type: ignore[attr-defined]  # a generator, also where a GPU is lent to it

        return run
