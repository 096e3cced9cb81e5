"""``python -m fastae`` is the ``fastae`` command."""

import sys

from fastae.cli import main

if __name__ == "__main__":
    sys.exit(main())
