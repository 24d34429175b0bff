"""What the daemon does before anything is started."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
from snapshotter.daemon.main import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
raise_descriptor_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "(512, 512)\n"
