"""Start the workbench: ``python app.py`` and open the address it prints."""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # noqa: F401 - before torch, which it changes: on a ZeroGPU Space there is no GPU between jobs
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin make a busy machine crawl


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="SDVQ: compress a diffusion model, compare same-seed images.")
    parser.add_argument(
        "--port", type=int, default=None, help="default: $GRADIO_SERVER_PORT, or the first free from 7860"
    )
    parser.add_argument("--host", default=None, help="default: $GRADIO_SERVER_NAME, or 127.0.0.1")
    parser.add_argument(
        "--data", type=Path, default=None, help="caches and images; default: $SDVQ_DATA, or the user cache"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--mode",
        default="auto",
        choices=("auto", "resident", "streaming"),
        help="compressed weights in memory: decoded once, or in every step; auto: by free memory",
    )
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp16", "bf16", "fp32"), help="arithmetic")
    parser.add_argument(
        "--offload", action="store_true", help="text encoders, VAE and the original UNet leave the GPU while idle"
    )
    parser.add_argument(
        "--text-encoders", default="16", metavar="WORD", help="16, as they are, or a quantizer, such as rtn:bits=8"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    from sdvq_core.errors import SdvqError
    from sdvq_core.setup import Setup
    from sdvq_core.ui import build, launch_options
    from sdvq_core.workbench import Workbench

    if arguments.data is not None:
        os.environ["SDVQ_DATA"] = str(arguments.data)  # all that is kept is kept there
    try:
        setup = Setup(arguments.dtype, arguments.offload, arguments.text_encoders)
        workbench = Workbench(arguments.data, arguments.device, mode=arguments.mode, setup=setup)
        if os.environ.get("SDVQ_PRELOAD"):
            workbench.preload(os.environ["SDVQ_PRELOAD"])
    except SdvqError as error:
        raise SystemExit(f"error: {error}") from None
    threading.Thread(target=workbench.warm_up, daemon=True).start()
    page = build(workbench)
    try:
        page.launch(server_name=arguments.host, server_port=arguments.port, **launch_options())
    except OSError as error:
        port = arguments.port or os.environ.get("GRADIO_SERVER_PORT") or "7860 to 7959"
        raise SystemExit(
            f"error: port {port} cannot be opened ({error.strerror or 'it is in use'}); choose one with --port"
        ) from None


if __name__ == "__main__":
    main()
