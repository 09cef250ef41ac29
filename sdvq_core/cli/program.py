"""The program that commands are added to."""

import typer

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Compress SDXL-family diffusion models by vector quantization, and see what it costs.",
)  # fmt: skip
