"""A user's mistake becomes a toast; every other exception is a bug and surfaces."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar, cast

import gradio as gr

from sdvq_core.errors import SdvqError

P = ParamSpec("P")
R = TypeVar("R")


def friendly(handler: Callable[P, R]) -> Callable[P, R]:
    """`handler`, a function or a generator, with SdvqError shown as gr.Error."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*args: P.args, **kwargs: P.kwargs) -> Iterator[object]:
            try:
                yield from cast(Iterator[object], handler(*args, **kwargs))
            except SdvqError as error:
                raise _toast(error) from error

        return cast(Callable[P, R], stream)

    @functools.wraps(handler)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(*args, **kwargs)
        except SdvqError as error:
            raise _toast(error) from error

    return call


def _toast(error: SdvqError) -> Exception:
    return cast(Exception, gr.Error(sentence(error), duration=12, print_exception=False))


def sentence(error: SdvqError) -> str:
    """The error's message as a sentence."""
    text = str(error).strip()
    begins_with_a_word = text.split(" ")[0].isalpha()  # not with a path or an option
    return (
        (text[:1].upper() if begins_with_a_word else text[:1])
        + text[1:]
        + ("" if text.endswith((".", "!", "?")) else ".")
    )
