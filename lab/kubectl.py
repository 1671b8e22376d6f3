"""kubectl as a function, for tests and the lab itself: what is shown to work here is what a user would type."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from lab.errors import LabError

_SERVED_SECONDS: Final = 30.0


class KubectlError(LabError):
    """kubectl refused or failed.

    Attributes:
        returncode: its exit status.
        stdout: what it printed.
        stderr: what it complained about; API server's messages are in here.
    """

    def __init__(self, arguments: tuple[str, ...], returncode: int, stdout: str, stderr: str) -> None:
        super().__init__(f"`kubectl {' '.join(arguments)}` failed with exit status {returncode}: {stderr.strip()}")
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class Kubectl:
    """Runs one kubectl with one kubeconfig.

    Args:
        binary: path of kubectl.
        kubeconfig: path of the kubeconfig.
        home: directory for its caches, so that the user's own are left alone.
    """

    def __init__(self, binary: Path, kubeconfig: Path, home: Path) -> None:
        self._binary = binary
        self._environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(home),
            "KUBECONFIG": str(kubeconfig),
            "KUBECACHEDIR": str(home / "kubectl-cache"),
        }

    def __call__(self, *arguments: str, input: str | None = None, check: bool = True, timeout: float = 120) -> str:
        """Run kubectl and return what it printed.

        Args:
            arguments: the command line after ``kubectl``.
            input: text for its standard input (``-f -``).
            check: whether a failure raises; otherwise its complaint is returned after its output.
            timeout: seconds it may take.

        Raises:
            KubectlError: it failed, and ``check`` is set.
        """
        done = subprocess.run(
            [str(self._binary), *arguments], input=input, capture_output=True, text=True, timeout=timeout,
            env=self._environment,
        )  # fmt: skip
        if done.returncode == 0:
            return done.stdout
        if check:
            raise KubectlError(arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def wait_served(self, definition: str) -> None:
        """Wait until a resource definition is served, watches included (they take a second to show that).

        ``kubectl wait`` fails at once where the API server has not written any condition yet; and where that says that
        the definition is established, a watch may still be answered with "storage is (re)initializing".

        Raises:
            KubectlError: It is not there, or not served within `_SERVED_SECONDS`.
        """
        deadline = time.monotonic() + _SERVED_SECONDS
        plural, _, group = definition.partition(".")
        state = "jsonpath={.status.conditions[?(@.type=='Established')].status} {.spec.versions[0].name}"
        seen = ""
        while time.monotonic() < deadline:
            seen = self("get", "crd", definition, "-o", state, check=False)
            established, _, version = seen.partition(" ")
            if established == "True":
                try:
                    self("get", "--raw", f"/apis/{group}/{version}/{plural}?watch=true&timeoutSeconds=1")
                except KubectlError as error:
                    seen = str(error)
                else:
                    return
            time.sleep(0.1)
        raise KubectlError(("get", "crd", definition), 1, seen, f"it is not served after {_SERVED_SECONDS:g} s")

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects, in the order given, as ``kubectl apply`` does."""
        if objects:
            self("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
