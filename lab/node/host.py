"""What a node changes on its host, and how all of it is undone, also after a crash.

A kubelet, a container runtime and a kube-proxy write into places that belong to the whole machine: bridges, network
namespaces, iptables, kernel settings, mounts, control groups. There is room for one of them on a machine, so this
module refuses to start where a node is at work already, notes whose it is and what the settings were before, and takes
everything away by looking at what is there rather than by remembering what was done.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lab.errors import LabError
from lab.process import Processes, Record

BRIDGE: Final = "lab0"
HOST_ADDRESS: Final = "10.77.0.1"
POD_NETWORK: Final = "10.77.0.0/24"
RUN: Final = Path("/run/canaryrollout-lab")
"""Sockets and state of the node. Not below the lab's directory: a socket's path must be short."""

SOCKET: Final = RUN / "containerd.sock"
PACKAGES: Final = {
    "containerd": "containerd",
    "ctr": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
    "debootstrap": "debootstrap",
    "buildah": "buildah",
    "ip": "iproute2",
    "iptables-save": "iptables",
    "iptables-restore": "iptables",
}
"""Debian package by program."""

CNI_PLUGINS: Final = Path("/usr/lib/cni")

_CLAIM = RUN / "claim.json"
_SETTINGS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""Kernel settings, below /proc/sys, that kubelet, kube-proxy or the bridge plugin change."""

_DIRECTORIES = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers")
"""What kubelet and plugins make where no setting moves it."""


def why_not() -> str:
    """Why this machine cannot carry a real node, for people; empty where it can."""
    if platform.system() != "Linux":
        return f"a real node needs Linux, and this is {platform.system()}"
    if os.geteuid() != 0:
        return "a real node needs root, for containers and their network"
    missing = {package for program, package in PACKAGES.items() if shutil.which(program) is None}
    if not (CNI_PLUGINS / "bridge").is_file():
        missing.add("containernetworking-plugins")
    if missing:
        return f"programs are missing; on Debian: apt-get install {' '.join(sorted(missing))}"
    return ""


@contextmanager
def alone() -> Iterator[None]:
    """Hold the machine's only place for a node while it is being started or taken down.

    Raises:
        LabError: another program is at it.
    """
    with Path("/run/canaryrollout-lab.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("another program is starting or ending a real node on this machine; wait for it") from None
        yield


def check_free(owner: Path) -> None:
    """Refuse where another lab that still runs has claimed this machine.

    Raises:
        LabError: names that lab.
    """
    holder = _holder()
    if holder is not None and holder != owner and any(map(Processes(holder).alive, Processes(holder).names())):
        raise LabError(f"there can be one real node on a machine, and the lab in {holder} has it; end that one first")


def claim(owner: Path) -> None:
    """Make the network of a node, for the lab with this state directory.

    Raises:
        LabError: another lab, or something that is no lab, is in the way.
    """
    check_free(owner)
    if (holder := _holder()) is not None:
        release(holder)
    if (Path("/sys/class/net") / BRIDGE).exists():
        raise LabError(
            f"there is a network interface {BRIDGE} that no lab has made; remove it: ip link delete {BRIDGE}"
        )
    if chains := _chains():
        raise LabError(f"this machine seems to be a Kubernetes node: iptables has the chain {chains[0][2]}")
    RUN.mkdir(mode=0o700, exist_ok=True)
    settings = {name: _setting(name).read_text().strip() for name in _SETTINGS if _setting(name).exists()}
    absent = [directory for directory in _DIRECTORIES if not Path(directory).exists()]
    _CLAIM.write_text(json.dumps({"owner": str(owner), "settings": settings, "absent": absent}))
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{HOST_ADDRESS}/{POD_NETWORK.partition('/')[2]}", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    _setting("net/ipv4/ip_forward").write_text("1")


def release(owner: Path) -> None:
    """Take away Pods, mounts, namespaces, chains, control groups and bridge, if it is this lab that has made them.

    Raises:
        LabError: something cannot be taken away.
    """
    if _holder() != owner:
        return
    _end_pods()
    _unmount(RUN, owner)
    if (Path("/sys/class/net") / BRIDGE).exists():
        for namespace in _pod_namespaces():
            run("ip", "netns", "delete", namespace)
        run("ip", "link", "delete", BRIDGE)
    _remove_chains()
    _remove_control_groups()
    before = json.loads(_CLAIM.read_text())
    for name, value in before["settings"].items():
        with contextlib.suppress(OSError):  # some may only grow
            _setting(name).write_text(value)
    for directory in before["absent"]:
        shutil.rmtree(directory, ignore_errors=True)
    shutil.rmtree(RUN)


def _holder() -> Path | None:
    """State directory of the lab that has claimed this machine, whether it still runs or not."""
    try:
        return Path(json.loads(_CLAIM.read_text())["owner"])
    except (OSError, ValueError, KeyError):
        return None


def run(*command: str, stdin: str | None = None) -> str:
    """Run a program of the system and return what it printed.

    Raises:
        LabError: It failed; the message has its complaint.
    """
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"`{' '.join(command)}` failed with exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _setting(name: str) -> Path:
    return Path("/proc/sys") / name


# --- Pods -----------------------------------------------------------------------------------------------------------


def _end_pods() -> None:
    """Kill every shim of our containerd, and the first process of each container, which takes the rest along."""
    shims = [pid for pid, arguments in _processes() if _is_our_shim(arguments)]
    children = [pid for pid, _ in _processes() if _parent(pid) in shims]
    records = [record for pid in (*shims, *children) if (record := Record.of(pid)) is not None]
    # Shims first: they would report, and clean up after, the deaths of their containers.
    for record in records:
        record.signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(record.alive() for record in records):
        if time.monotonic() > deadline:
            pids = ", ".join(str(record.pid) for record in records if record.alive())
            raise LabError(f"processes of Pods do not end on SIGKILL: {pids}")
        time.sleep(0.02)


def _processes() -> list[tuple[int, list[str]]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append((int(path.parent.name), path.read_bytes().decode(errors="replace").split("\0")))
    return found


def _is_our_shim(arguments: list[str]) -> bool:
    return arguments[0].endswith("containerd-shim-runc-v2") and str(SOCKET) in arguments


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


# --- Mounts, namespaces, control groups -----------------------------------------------------------------------------


def _unmount(*roots: Path) -> None:
    """Unmount everything below these directories, the last mounted first.

    Raises:
        LabError: Something is still mounted there: what is below must not be deleted.
    """
    for attempt in range(20):
        mounted = [point for point in _mount_points() if any(Path(point).is_relative_to(root) for root in roots)]
        if not mounted:
            return
        for point in reversed(mounted):
            subprocess.run(["umount", *(["--lazy"] if attempt > 5 else []), point], capture_output=True)
        time.sleep(0.05)
    raise LabError(f"cannot unmount {', '.join(mounted)}; unmount them by hand")


def _mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]) for line in lines]


def _pod_namespaces() -> list[str]:
    """Names of the network namespaces on the other ends of the bridge's ports."""
    links = run("ip", "-o", "link", "show", "master", BRIDGE)
    return sorted(set(re.findall(r"link-netns (cni-\S+)", links)))


def _remove_control_groups() -> None:
    """Remove the groups of our containers, which are empty by now: runc puts them below the runtime's namespace."""
    for controller in Path("/sys/fs/cgroup").glob("*/k8s.io"):
        for directory, _, _ in os.walk(controller, topdown=False):
            with contextlib.suppress(OSError):  # in use by somebody else's node
                Path(directory).rmdir()


# --- iptables -------------------------------------------------------------------------------------------------------


def _chains() -> list[tuple[str, str, str]]:
    """Chains of kubelet and kube-proxy as (program, table, chain)."""
    found = []
    for program in ("iptables", "ip6tables"):
        table = ""
        done = subprocess.run([f"{program}-save"], capture_output=True, text=True)
        for line in done.stdout.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith(":KUBE-"):
                found.append((program, table, line[1:].split()[0]))
    return found


def _remove_chains() -> None:
    """Remove the chains of kubelet and kube-proxy, and the rules of others' chains that lead into them."""
    chains = _chains()
    for program in sorted({program for program, _, _ in chains}):
        edits: list[str] = []
        saved = run(f"{program}-save")
        for block in saved.split("*")[1:]:
            table = block.split("\n", 1)[0]
            ours = [chain for owner, of, chain in chains if (owner, of) == (program, table)]
            jumps = [line for line in block.splitlines() if re.match(r"-A (?!KUBE-).* -[jg] KUBE-", line)]
            edits += [f"*{table}", *(f"-D{line[2:]}" for line in jumps)]
            edits += [f"-F {chain}" for chain in ours] + [f"-X {chain}" for chain in ours] + ["COMMIT"]
        run(f"{program}-restore", "--noflush", stdin="\n".join(edits) + "\n")
