"""The tier itself: what it leaves on the machine, also when its program is killed, is nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.node import host
from lab.paths import REPO_DIR
from lab.realnode import RealNodeLab
from tests.node.conftest import place

# The first test may have to wait for tools and images to be built.
pytestmark = [pytest.mark.node, pytest.mark.timeout(3600)]

PROGRAM = """
import sys, time
from lab.realnode import RealNodeLab
with RealNodeLab(sys.argv[1]) as lab:
    lab.kubectl("apply", "-f", "examples/reviews/mesh.yaml", "-f", "examples/reviews/v1.yaml")
    lab.kubectl("-n", "shop", "rollout", "status", "deployment/reviews-v1", "--timeout=120s")
    print("up", flush=True)
    time.sleep(600)
"""


def snapshot() -> dict[str, object]:
    """What a node could leave behind."""
    return {
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "namespaces": sorted(path.name for path in Path("/run/netns").glob("*")),
        "chains": subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.count("KUBE-"),
        "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "shims": sorted(pid for pid, arguments in host._processes() if host._is_our_shim(arguments)),
        "settings": {name: host._setting(name).read_text() for name in host._SETTINGS if host._setting(name).exists()},
        "directories": [name for name in (*host._DIRECTORIES, str(host.RUN)) if Path(name).exists()],
        "groups": sorted(map(str, Path("/sys/fs/cgroup").glob("*/k8s.io"))),
    }


@pytest.mark.usefixtures("machine")
def test_nothing_is_left_of_a_node_whose_program_was_killed() -> None:
    name = f"pytest-killed-{os.getpid()}"
    with place():
        before = snapshot()
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name], cwd=REPO_DIR, stdout=subprocess.PIPE, text=True
        )
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "up\n"
            during = snapshot()
            assert during["shims"], "no Pod ran: this test has shown nothing"
            assert during["chains"]
        finally:
            program.send_signal(signal.SIGKILL)
            program.wait()
            lab = RealNodeLab(name)
            lab.down()
        after = snapshot()
        lab.forget()
    assert after == before
