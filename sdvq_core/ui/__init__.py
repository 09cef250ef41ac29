"""The page: gathers widget values into a job, iterates the Workbench's events, shows them. Computes nothing.

The only room that imports gradio.
"""

from sdvq_core.ui.page import build, launch_options

__all__ = ["build", "launch_options"]
