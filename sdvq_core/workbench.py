"""The one service that the command line and the page talk to: jobs in, events and records out."""

from __future__ import annotations
