"""Figures: one file per figure, records in, a Plotly figure out. The only room that imports plotly."""

from sdvq_core.plots.codebook_usage import codebook_usage
from sdvq_core.plots.error_heatmap import error_heatmap
from sdvq_core.plots.error_size import error_size
from sdvq_core.plots.layer_errors import layer_errors
from sdvq_core.plots.loss_curve import loss_curve
from sdvq_core.plots.rate_distortion import rate_distortion
from sdvq_core.plots.timestep_error import timestep_error
from sdvq_core.plots.weight_histogram import weight_histogram

__all__ = [
    "codebook_usage",
    "error_heatmap",
    "error_size",
    "layer_errors",
    "loss_curve",
    "rate_distortion",
    "timestep_error",
    "weight_histogram",
]
