"""What the first guard of a program loads."""

import subprocess
import sys


def test_a_guard_loads_at_most_16_modules():
    """`gradguard.no_grad()` after importing torch and gradguard loads no more of the package."""
    program = (
        "import sys, torch, gradguard; gradguard.no_grad()\n"
        "print(*sorted(m for m in sys.modules if m.partition('.')[0] == 'gradguard'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = ran.stdout.split()
    assert "gradguard._core.guard_types" in loaded
    assert len(loaded) <= 16, loaded
