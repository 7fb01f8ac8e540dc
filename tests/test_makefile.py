"""What `make` would run, where that could surprise its user."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from daemons import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")


def would(*words: str, **environ: str) -> str:
    """The commands of a target, not run."""
    return subprocess.run(
        ["make", "-n", *words], cwd=ROOT, env={"PATH": os.environ["PATH"], **environ}, stdout=-1, text=True, check=True
    ).stdout


def test_a_read_only_checkout_keeps_what_it_runs_in_a_folder_of_its_users():
    """The folder had a name that anybody could have taken in /tmp, with a Python of theirs in it."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    with TemporaryDirectory() as place:
        checkout, elsewhere = Path(place, "checkout"), Path(place, "tmp")
        for folder in (checkout, elsewhere):
            folder.mkdir()
        shutil.copy(ROOT / "Makefile", checkout)
        for folder, mode in ((Path(place), 0o755), (checkout, 0o555), (elsewhere, 0o1777)):
            folder.chmod(mode)

        def make() -> subprocess.CompletedProcess[str]:
            environ = {"PATH": os.environ["PATH"], "TMPDIR": str(elsewhere)}
            return subprocess.run(
                ["make", "-n", "pyz"], cwd=checkout, env=environ, stdout=-1, stderr=-1, text=True, **nobody
            )

        told = make()
        (ours,) = elsewhere.iterdir()
        assert f"--into {ours}/dist pyz" in told.stdout, told.stderr
        assert stat.S_IMODE(ours.stat().st_mode) == 0o700
        ours.rename(elsewhere / "other")
        ours.symlink_to(elsewhere / "other")
        assert make().returncode != 0
        ours.unlink()
        if nobody:
            ours.mkdir()
            told = make()
            assert told.returncode != 0
            assert "set TMPDIR" in told.stderr
        checkout.chmod(0o755)


def test_measuring_beside_other_programs_installs_them_only_when_asked_to():
    assert "apt-get" not in would("bench-peers")
    assert "BENCH_INSTALL=1" in would("bench-peers")
    for told in (would("bench-peers", "BENCH_INSTALL=1"), would("bench-peers", CI="true")):
        assert "apt-get install" in told
        assert "beanstalkd" in told
