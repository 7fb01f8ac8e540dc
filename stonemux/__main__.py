"""`python -m stonemux`, and `python path/to/stonemux/__main__.py` from any folder."""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - checked before importing modules that an older Python cannot even parse
    sys.exit("stonemux needs Python 3.11 or newer, and this is " + sys.version.split()[0] + ": " + sys.executable)

if __spec__ is None:  # started by its path, so the package's parent folder may not be on sys.path yet
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if root not in sys.path:
        sys.path.insert(0, root)

from stonemux.cli import main

sys.exit(main())
