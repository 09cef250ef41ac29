"""Generate: settings become jobs, the Workbench's events become states of the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from sdvq_core.errors import SdvqError
from sdvq_core.jobs import (
    ArmResult,
    CompareEvent,
    CompareJob,
    CompareResult,
    Estimate,
    ModelInfo,
    Notice,
    Preview,
    Progress,
)
from sdvq_core.ui import wording
from sdvq_core.ui.board import Board, interrupted
from sdvq_core.ui.guard import sentence
from sdvq_core.ui.settings import Settings
from sdvq_core.ui.status_line import progress_status, status

BUG = "Something went wrong in SDVQ itself; the program's log says what."
FRAME_SECONDS = 0.12  # a page that is drawn more often than this costs more than it shows


class Service(Protocol):
    """What this file needs of the Workbench."""

    def models(self) -> list[ModelInfo]: ...
    def estimate(self, model: str, arm: str) -> Estimate: ...
    def compare(self, job: CompareJob) -> Iterator[CompareEvent]: ...


class Frame(NamedTuple):
    """One state of the page; `finished` names the model and the arms that have a report."""

    view: dict[str, object]
    status: dict[str, object]
    running: bool
    finished: tuple[str, tuple[str, ...]] | None = None


@dataclass
class Run:
    """One press of Generate."""

    service: Service
    settings: Settings
    serve: Callable[[Path], str]
    warn: Callable[[str], object]

    def frames(self) -> Iterator[Frame]:
        """Every state worth drawing; the last one says how it ended. Closing it closes the work below."""
        jobs = self.settings.jobs
        estimates = [self.service.estimate(self.settings.model, arm) for arm in self.settings.arms]
        self.board = Board(jobs, estimates, self.serve)
        self.state = status("busy", "Starting", done=None)
        yield self._frame()
        started = time.monotonic()
        try:
            yield from self._stream(jobs)
        except SdvqError as error:
            yield Frame(interrupted(self.board.value()), status("failed", "Stopped", sentence(error)), False)
            raise
        except Exception:
            yield Frame(interrupted(self.board.value()), status("failed", "Stopped", BUG), False)
            raise
        spent = wording.seconds(time.monotonic() - started)
        done = status("done", "Done", f"{len(jobs) * len(estimates)} pictures in {spent}", 1.0)
        reported = tuple(arm for arm, result in self.board.results.items() if result.report)
        yield Frame(self.board.value(), done, False, (self.settings.model, reported))

    def _stream(self, jobs: tuple[CompareJob, ...]) -> Iterator[Frame]:
        drawn = 0.0
        for row, job in enumerate(jobs):
            events = self.service.compare(job)
            try:
                for event in events:
                    at_once = self._take(row, job, event)
                    now = time.monotonic()
                    if at_once or now - drawn >= FRAME_SECONDS:
                        drawn = now
                        yield self._frame()
            finally:
                close = getattr(events, "close", None)
                if close:
                    close()

    def _take(self, row: int, job: CompareJob, event: CompareEvent) -> bool:
        """True if the page should be drawn now, however short the last frame stood."""
        match event:
            case Progress():
                several = f" · seed {job.sampling.seed}" if len(self.board.jobs) > 1 else ""
                self.state = progress_status(event, several)
            case Preview():
                self.board.preview(row, event)
            case ArmResult():
                self.board.finish(row, event)
                return True
            case Notice():
                self.warn(event.text)
            case CompareResult():
                model = model_named(self.service, job.model)
                name = f"{model.label} · {model.tier} tier" if model else job.model
                self.board.footer = f"{name} · {event.device}"
                return True
        return False

    def _frame(self) -> Frame:
        return Frame(self.board.value(), self.state, True)


def model_named(service: Service, name: str) -> ModelInfo | None:
    """What is known of a model in the menu; None for one named by path or Hub id."""
    return next((model for model in service.models() if model.name == name), None)
