"""Bring the quote of the copy driver in CONTRIBUTING.md up to date; run it after a change in that driver.

tests/docs/test_docs.py fails while quote and driver differ.
"""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
START = "class CopyDriver"


def main() -> None:
    """Replace the block that starts with the class."""
    source = (REPOSITORY / "backends/layerfs_backends/copy.py").read_text()
    guide = REPOSITORY / "CONTRIBUTING.md"
    block = f"```python\n{source[source.index(START) :]}```\n"
    pattern = rf"^```python\n{START}.*?^```\n"
    guide.write_text(re.sub(pattern, lambda _: block, guide.read_text(), flags=re.MULTILINE | re.DOTALL))


if __name__ == "__main__":
    main()
