"""`python -m sdvq_core`."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin make a busy machine crawl

from sdvq_core.cli import main

if __name__ == "__main__":
    main()
