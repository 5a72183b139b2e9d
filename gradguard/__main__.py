"""``python -m gradguard``: see `gradguard._cli`."""

import sys

from gradguard._cli import main

if __name__ == "__main__":
    sys.exit(main())
