"""How far an evaluation is: images over all arms, and the seconds left at the speed of those that were not on disk."""

from __future__ import annotations

from dataclasses import dataclass

from sdvq_core.jobs import Progress


@dataclass
class Meter:
    """Counts images up to `total`."""

    total: int
    done: int = 0
    worked: int = 0
    seconds: float = 0.0

    def advance(self, arm: str, images: int, seconds: float | None, text: str) -> Progress:
        """`images` more are done; seconds: what they took just now, None where they were on disk."""
        self.done += images
        if seconds is not None:
            self.worked += images
            self.seconds += seconds
        return Progress("sample", arm, self.done, self.total, text, self.seconds_left)

    def drop(self, images: int) -> None:
        """`images` will not be drawn after all."""
        self.total -= images

    @property
    def seconds_left(self) -> float | None:
        """None until something was drawn."""
        return self.seconds / self.worked * (self.total - self.done) if self.worked else None
