"""`python -m stonemux`."""

import sys

from stonemux.cli import main

sys.exit(main())
