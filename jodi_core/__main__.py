"""`python -m jodi_core ...`"""

import os
import sys

from .cli import INTERRUPTED, main

status = main()
if status == INTERRUPTED:
    # Python forgets that an interrupt was handled if it hit a lazy import, and would end as if killed.
    sys.stdout.flush()
    os._exit(status)
sys.exit(status)
