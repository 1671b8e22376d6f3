"""The lab is what it claims to be: a mesh that splits by weight, counts exactly, and survives outages of its parts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from lab import Lab, LabError, PartFailed, selfcheck, service
from lab.istio import GATEWAY
from lab.ports import Reservation

pytestmark = pytest.mark.mesh

NAMESPACE = "lab-test"


def get(lab: Lab, host: str) -> requests.Response:
    return requests.get(lab.gateway_url, headers={"Host": host}, timeout=5)


def publish(lab: Lab, app: str) -> str:
    host = f"{app}.{NAMESPACE}.svc.cluster.local"
    route = {"destination": {"host": host}}
    lab.apply(
        service(NAMESPACE, app),
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": app, "namespace": NAMESPACE},
            "spec": {"hosts": [host], "gateways": [GATEWAY], "http": [{"route": [route]}]},
        },
    )
    lab.wait_synced()
    return host


def test_self_check_sees_the_split_and_the_same_counts(lab: Lab) -> None:
    result = selfcheck.run(lab)
    print(f"answered {result.answered}, counted {result.counted}, timed {result.timed}")
    assert result.problems == []


def test_everything_listens_on_loopback_only(lab: Lab) -> None:
    ours = {str(lab.processes.pid(part)) for part in lab.parts}
    listeners = listening_sockets(ours)
    assert {port for _, port in listeners} >= {lab.site.ports[p] for p in ("envoy.gateway", "prometheus.http")}
    assert {address for address, _ in listeners} == {"127.0.0.1"}


def link_of(fd: Path) -> str:
    """What a file descriptor is of; empty where it was closed meanwhile."""
    try:
        return os.readlink(fd)
    except FileNotFoundError:
        return ""


def listening_sockets(pids: set[str]) -> list[tuple[str, int]]:
    """Address and port of every listening TCP socket of these processes, from /proc."""
    links = [link for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir() if (link := link_of(fd))]
    inodes = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw, port = fields[1].split(":")
                address = ".".join(str(byte) for byte in reversed(bytes.fromhex(raw))) if len(raw) == 8 else raw
                found.append((address, int(port, 16)))
    return found


def test_a_stopped_backend_leaves_the_mesh_and_a_crashed_one_does_not(lab: Lab) -> None:
    first, second = lab.backend(NAMESPACE, "pair", "v1"), lab.backend(NAMESPACE, "pair", "v2")
    host = publish(lab, "pair")
    assert {get(lab, host).headers["X-App-Version"] for _ in range(20)} == {"v1", "v2"}
    first.stop()
    lab.wait_synced()
    assert {get(lab, host).headers["X-App-Version"] for _ in range(20)} == {"v2"}
    second.crash()
    assert second.process is None
    assert get(lab, host).status_code == 503


def test_a_backend_misbehaves_on_demand_and_behaves_again(lab: Lab) -> None:
    backend = lab.backend(NAMESPACE, "moody", "v1", error_rate=1.0)
    host = publish(lab, "moody")
    assert get(lab, host).status_code == 500
    backend.set_mode(latency_ms=300)
    slow = get(lab, host)
    assert slow.status_code == 200
    assert slow.elapsed.total_seconds() >= 0.3
    backend.set_mode()
    assert min(get(lab, host).elapsed.total_seconds() for _ in range(3)) < 0.3
    backend.stop()


def test_requests_go_on_while_istiod_is_away_and_changes_arrive_when_it_is_back(lab: Lab) -> None:
    old = lab.backend(NAMESPACE, "outage", "v1")
    host = publish(lab, "outage")
    pid = lab.processes.pid("istiod")
    lab.stop("istiod")
    assert get(lab, host).headers["X-App-Version"] == "v1"
    lab.backend(NAMESPACE, "outage", "v2")
    old.withdraw()
    with pytest.raises(LabError):
        lab.wait_synced(timeout=1)
    lab.start("istiod")
    lab.wait_synced()
    assert lab.processes.pid("istiod") != pid
    assert get(lab, host).headers["X-App-Version"] == "v2"


def test_prometheus_comes_back_with_its_data(lab: Lab) -> None:
    backend = lab.backend(NAMESPACE, "data", "v1")
    host = publish(lab, "data")
    assert get(lab, host).status_code == 200
    query = {"query": f'istio_requests_total{{destination_service="{host}"}}'}

    def samples() -> list[object]:
        answer = requests.get(f"{lab.prometheus_url}/api/v1/query", params=query, timeout=5)
        return list(answer.json()["data"]["result"])

    deadline = time.monotonic() + 10
    while not samples() and time.monotonic() < deadline:
        time.sleep(0.1)
    lab.restart("prometheus")
    assert samples()
    backend.stop()


def test_operator_user_may_do_only_what_a_role_allows(lab: Lab) -> None:
    """The chart's role, which the tests of the operator bind to this user, knows no Secrets."""
    kubectl = lab.kubectl_as("operator")
    assert "forbidden" in kubectl("get", "secrets", "-n", "default", check=False).lower()
    with pytest.raises(LabError, match="no user 'mallory'"):
        lab.kubeconfig_for("mallory")


def test_the_death_of_a_part_is_named_with_the_end_of_its_log() -> None:
    with Lab(f"pytest-death-{os.getpid()}", ("etcd",)) as victim:
        pid = victim.processes.pid("etcd")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while victim.processes.alive("etcd"):
            time.sleep(0.01)
        with pytest.raises(PartFailed, match=r"(?s)etcd has died \(killed by SIGKILL\); the end of .*etcd\.log:\n    "):
            victim.check_alive()
    victim.forget()


def test_two_labs_run_side_by_side_and_the_second_ends_alone(lab: Lab) -> None:
    with Lab(f"pytest-second-{os.getpid()}", ("etcd",)) as second:
        assert second.processes.alive("etcd")
        assert set(second.site.ports.values()).isdisjoint(lab.site.ports.values())
    assert not second.processes.alive("etcd")
    lab.check_alive()
    assert "ok" in lab.kubectl("get", "--raw", "/readyz")
    second.forget()


def test_a_port_that_was_snatched_away_is_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = Lab(f"pytest-ports-{os.getpid()}", ("etcd",))
    with socket.create_server(("127.0.0.1", 0)) as snatcher:
        snatched = [snatcher.getsockname()[1]]
        take = Reservation.take
        monkeypatch.setattr(Reservation, "take", lambda self: snatched.pop() if snatched else take(self))
        with victim:
            assert snatched == []
            assert snatcher.getsockname()[1] not in victim.site.ports.values()
            assert victim.processes.alive("etcd")
    victim.forget()


def test_a_lab_in_use_is_neither_entered_nor_ended_by_others() -> None:
    name = f"pytest-busy-{os.getpid()}"
    with Lab(name, ("etcd",)) as owner:
        with pytest.raises(LabError, match=rf"the lab '{name}' is being used by process {os.getpid()} "):
            Lab(name, ("etcd",)).down()
        with pytest.raises(LabError, match="is being used by"), Lab(name, ("etcd",)):
            pass
        assert owner.processes.alive("etcd")
    owner.forget()


def test_a_standing_lab_stays_until_it_is_ended_and_a_broken_one_is_started_anew() -> None:
    name = f"pytest-standing-{os.getpid()}"
    run = [sys.executable, "-c", f"from lab import Lab; print(Lab({name!r}, ('etcd',)).up())"]
    try:
        assert subprocess.run(run, capture_output=True, text=True, timeout=60).stdout == "True\n"
        first = Lab(name, ("etcd",)).processes.pid("etcd")
        assert first is not None
        assert subprocess.run(run, capture_output=True, text=True, timeout=60).stdout == "False\n"
        assert Lab(name, ("etcd",)).processes.pid("etcd") == first
        os.kill(first, signal.SIGKILL)
        with pytest.raises(PartFailed, match="etcd has died"):
            Lab.attach(name)
        assert subprocess.run(run, capture_output=True, text=True, timeout=60).stdout == "True\n"
        assert Lab(name, ("etcd",)).processes.pid("etcd") not in (None, first)
    finally:
        ended = Lab(name, ("etcd",)).down()
    assert ended == ["etcd"]
    assert Lab(name, ("etcd",)).down() == []
    Lab(name, ("etcd",)).forget()


def test_parts_do_not_outlive_a_program_that_is_killed() -> None:
    name = f"pytest-killed-{os.getpid()}"
    program = (
        "import sys, time\nfrom lab import Lab\n"
        f"with Lab({name!r}, ('etcd',)) as lab:\n    print(lab.processes.pid('etcd'), flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        child.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    leftover = Lab(name, ("etcd",))
    assert leftover.down() == []
    leftover.forget()
