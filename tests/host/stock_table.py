"""Writes docs/stock_nodes.md: python tests/host/stock_table.py"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from stock import TABLE, table  # noqa: E402  (needs the path above)

if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
