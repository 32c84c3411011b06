"""The commands of cli.py, on a PyTorch that is new enough for them."""

import sys

from .versions import require_torch

if __name__ == "__main__":
    try:
        require_torch("the trainer")
    except ValueError as error:
        sys.exit(str(error))
    from .cli import main    # not before: it imports what an older one lacks
    sys.exit(main())
