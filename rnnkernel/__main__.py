"""``python -m rnnkernel``."""

import sys

from rnnkernel.cli import main

sys.exit(main())
