"""What `make` would run, where that could surprise its user."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from daemons import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")


def would(*words: str, **environ: str) -> str:
    """The commands of a target, not run."""
    return subprocess.run(
        ["make", "-n", *words], cwd=ROOT, env={"PATH": os.environ["PATH"], **environ}, stdout=-1, text=True, check=True
    ).stdout


def test_measuring_beside_other_programs_installs_them_only_when_asked_to():
    assert "apt-get" not in would("bench-peers")
    assert "BENCH_INSTALL=1" in would("bench-peers")
    for told in (would("bench-peers", "BENCH_INSTALL=1"), would("bench-peers", CI="true")):
        assert "apt-get install" in told
        assert "beanstalkd" in told
