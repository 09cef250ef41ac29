"""The version, in one place: pyproject.toml, the artifact card and the About tab read it."""

__version__ = "0.1.0"
