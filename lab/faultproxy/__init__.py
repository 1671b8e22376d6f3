"""A proxy between a client and the Kubernetes API server that makes the API server fail on demand.

An operator is only as good as it is on a bad day, and bad days do not come when a test wants them. This proxy stands
between the operator (or any client: it is pointed to by a kubeconfig) and a real API server, hands requests on, and
delays, drops, cuts, hangs or answers those that a rule names, ends watches, and kills or stops the operator at the n-th
request of a kind, just before it arrives or just after it was done. Everything that went through is in a journal.

By hand::

    python -m lab.faultproxy --upstream-kubeconfig ~/.kube/config --kubeconfig /tmp/proxied \
        --rule 'patch virtualservices n=3 kill-after pid=4711' --rule 'write from=20s for=30s answer=503'
    canaryrollout run --kubeconfig /tmp/proxied

In tests::

    with FaultProxy(lab.kubeconfig) as proxy:
        operator.start(proxy.kubeconfig(tmp_path / "kubeconfig"))
        killed = proxy.rule("patch virtualservices n=3 kill-after", lambda: operator.pid)
        proxy.wait(killed, within=30)

It listens on loopback only, in plain HTTP, and lends its own credentials to whoever brings none: a tool for a lab.
"""

from lab.faultproxy.calls import Call, call_of
from lab.faultproxy.journal import Entry, Journal
from lab.faultproxy.proxy import FaultProxy
from lab.faultproxy.rules import GRAMMAR, Fault, Match, Rule, RuleError, parse
from lab.faultproxy.server import Armed

__all__ = [
    "GRAMMAR",
    "Armed",
    "Call",
    "Entry",
    "Fault",
    "FaultProxy",
    "Journal",
    "Match",
    "Rule",
    "RuleError",
    "call_of",
    "parse",
]
