"""The fast tests once more, while each thread of the program is held up at random moments.

What then fails has a race in it: either the program, or the test, which may fail on a busy machine just as well.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from daemons import ROOT


@pytest.mark.parametrize("seed", [1, 2])
def test_it_holds_with_delays_anywhere(seed):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "delays", "-n", "auto", "--dist", "worksteal"),
            *("-p", "no:cacheprovider", "tests"),
        ],
        cwd=ROOT,
        env=os.environ | {"STONEMUX_DELAYS": str(seed), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
