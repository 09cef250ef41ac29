"""Prompts x seeds, every arm against the first: drawing, scoring, noise floors, error by timestep, reports."""

from sdvq_core.evaluation.report_files import markdown, write_report
from sdvq_core.evaluation.running import evaluate

__all__ = ["evaluate", "markdown", "write_report"]
