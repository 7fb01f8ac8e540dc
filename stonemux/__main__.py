"""`python -m stonemux`, and `python path/to/stonemux/__main__.py` from any folder."""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - told before anything is loaded that an older one cannot even read
    sys.exit("stonemux needs Python 3.11 or newer, and this is " + sys.version.split()[0] + ": " + sys.executable)

if __spec__ is None:  # started by its path: the package is found where this file lies
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if root not in sys.path:
        sys.path.insert(0, root)

from stonemux.cli import main

sys.exit(main())
