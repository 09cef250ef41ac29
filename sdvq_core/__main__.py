"""`python -m sdvq_core`."""

from sdvq_core.cli import main

if __name__ == "__main__":
    main()
