"""`python -m stonemux`, and `python path/to/stonemux/__main__.py` from any folder."""

import os
import sys

if __spec__ is None:  # started by its path: the package is found where this file lies
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if root not in sys.path:
        sys.path.insert(0, root)

from stonemux.cli import main

sys.exit(main())
