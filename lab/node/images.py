"""The images that the node's Pods run, built from the project's own Dockerfiles, without Docker and without a registry.

Base images come from registries, which not every machine reaches; Debian's package archive is reached by more. So the
base is a minimal Debian with its Python, made once by debootstrap and kept in the lab's cache. Everything above it is
what the project ships: ``buildah`` runs the very Dockerfiles that Docker would, with another ``BASE``.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.errors import LabError, ToolError
from lab.node.host import run
from lab.paths import REPO_DIR, cache_dir
from lab.progress import Progress

OPERATOR: Final = "canaryrollout:lab"
SAMPLE: Final = "sample-service:dev"
PAUSE: Final = "lab-pause:dev"
"""Holds a Pod's namespaces; it has to do nothing, and to do it for ever."""

_BASE = "localhost/python-base"
_SUITE = "bookworm"
_INCLUDE = ("ca-certificates", "python3", "python3-venv")
_MOST_LAYERS = 200
_RUNROOT = Path("/run/canaryrollout-buildah")


@dataclass(frozen=True)
class _Image:
    name: str
    context: Path
    dockerfile: str = ""


def archive(progress: Progress) -> Path:
    """An OCI archive with all images of the node, built where their sources have changed.

    Raises:
        ToolError: A build failed; the message shows the end of its log.
    """
    base = _base_tar(progress)
    with tempfile.TemporaryDirectory(prefix="lab-images-") as directory:
        scratch = Path(directory)
        with progress.working("building the images of operator and sample service (a minute at first)"):
            _prune()
            settings = _pip_settings(scratch)
            _build_base(base, scratch)
            images = (
                _Image(OPERATOR, REPO_DIR),
                _Image(SAMPLE, REPO_DIR / "examples" / "sample-service"),
                _Image(PAUSE, scratch, f'FROM {_BASE}\nENTRYPOINT ["/bin/sleep", "infinity"]\n'),
            )
            ids = [_build(image, settings, scratch) for image in images]
    target = cache_dir() / "images" / f"{hashlib.sha256(''.join(ids).encode()).hexdigest()[:16]}.tar"
    if not target.is_file():
        with progress.working("packing the images"):
            _pack({image.name: image_id for image, image_id in zip(images, ids, strict=True)}, target)
    return target


# --- The base -------------------------------------------------------------------------------------------------------


def _base_tar(progress: Progress) -> Path:
    key = hashlib.sha256("\0".join((_SUITE, *_INCLUDE)).encode()).hexdigest()[:16]
    target = cache_dir() / "python-base" / key / "base.tar"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        progress.working("making the base image, once (about a minute)"),
        tempfile.TemporaryDirectory(prefix="base-", dir=target.parent) as directory,
    ):
        root, packed = Path(directory) / "root", Path(directory) / "base.tar"
        mirror = [uri] if (uri := _mirror()) else []
        include = f"--include={','.join(_INCLUDE)}"
        _logged("debootstrap", ["debootstrap", "--variant=minbase", include, _SUITE, str(root), *mirror])
        run(
            "tar",
            "-C",
            str(root),
            "--numeric-owner",
            "--exclude=./var/cache/apt/archives/*.deb",
            "-cf",
            str(packed),
            ".",
        )
        packed.rename(target)
    return target


def _mirror() -> str:
    """The Debian archive that this machine's apt uses for the suite; empty where it uses none."""
    try:
        listed = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)")
    except (LabError, OSError):
        return ""
    for line in listed.splitlines():
        uri, release, component = line.split(" ", 2)
        if (release, component) == (_SUITE, "main"):
            return uri
    return ""


def _build_base(tar: Path, scratch: Path) -> None:
    context = scratch / "base"
    context.mkdir()
    # A link, and not 280 MB of copying; buildah wants everything inside the context.
    try:
        os.link(tar, context / "base.tar")
    except OSError:
        shutil.copy(tar, context / "base.tar")
    (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    _logged("python-base", _buildah("bud", "--layers", "--tag", _BASE, str(context)))


# --- Building -------------------------------------------------------------------------------------------------------


def _buildah(*arguments: str) -> list[str]:
    store = cache_dir() / "buildah"
    # Overlays do not stack on overlays, which is what a container's own file system is; copying always works.
    below = run("stat", "--file-system", "--format=%T", str(cache_dir())).strip()
    driver = "vfs" if below in ("overlayfs", "UNKNOWN") else "overlay"
    root = store / driver
    return ["buildah", "--root", str(root), "--runroot", str(_RUNROOT), "--storage-driver", driver, *arguments]


def _prune() -> None:
    """Start the store afresh when it has seen many builds: it never forgets a layer by itself."""
    for records in (cache_dir() / "buildah").glob("*/*-images"):
        if sum(1 for path in records.iterdir() if path.is_dir()) > _MOST_LAYERS:
            _logged("prune", _buildah("rmi", "--all", "--force"))


def _build(image: _Image, settings: list[str], scratch: Path) -> str:
    """Build an image, every unchanged layer from the cache; returns its id."""
    tag = image.name.partition(":")[0]
    id_file = scratch / f"{tag}.id"
    file = []
    if image.dockerfile:
        path = scratch / f"{tag}.Dockerfile"
        path.write_text(image.dockerfile)
        file = ["--file", str(path)]
    _logged(
        tag,
        _buildah(
            "bud", "--layers", "--build-arg", f"BASE={_BASE}", *settings, *file, "--iidfile", str(id_file),
            "--tag", f"localhost/{image.name}", str(image.context),
        ),
    )  # fmt: skip
    return id_file.read_text().strip()


def _logged(name: str, command: list[str]) -> None:
    """Run a long command with its output in a log.

    Raises:
        ToolError: It failed; the message shows the end of the log.
    """
    log = cache_dir() / "logs" / f"image-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment
        ).returncode
    if code != 0:
        tail = "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-15:])
        raise ToolError(f"{name} could not be made (exit status {code}); the end of {log}:\n{tail}")


def _pip_settings(scratch: Path) -> list[str]:
    """Volumes that give a build this machine's pip settings: index, certificates, local wheels. None ends up inside."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    parser = configparser.ConfigParser(interpolation=None)
    parser["global"] = {}
    volumes: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, quoted = line.partition("=")
        section, _, name = key.rpartition(".")
        value = quoted.strip("'\"")
        if section not in ("global", "install", ":env:"):
            continue
        if value.startswith("/"):
            if not Path(value).exists():
                continue
            volumes[value] = f"{Path(value).resolve()}:{value}:ro"
        parser["global"][name] = value
    if not parser["global"]:
        return []
    with (scratch / "pip.conf").open("w") as file:
        parser.write(file)
    volumes["/etc/pip.conf"] = f"{scratch / 'pip.conf'}:/etc/pip.conf:ro"
    return [argument for volume in volumes.values() for argument in ("--volume", volume)]


# --- Packing --------------------------------------------------------------------------------------------------------


def _pack(images: dict[str, str], target: Path) -> None:
    """Write images, by name, into one OCI archive, in which the layers that they share lie once.

    The layout that it is made from stays, because writing a layer anew takes longer than seeing that it is there.
    """
    layout = cache_dir() / "images" / "layout"
    layout.mkdir(parents=True, exist_ok=True)
    (layout / "index.json").unlink(missing_ok=True)
    for name, image_id in images.items():
        destination = f"oci:{layout}:{name.replace(':', '-')}"
        _logged("pack", _buildah("push", "--disable-compression", image_id, destination))
    index = json.loads((layout / "index.json").read_text())
    names = {name.replace(":", "-"): name for name in images}
    for manifest in index["manifests"]:
        name = names[manifest["annotations"]["org.opencontainers.image.ref.name"]]
        # What an image without a registry's name is taken for.
        manifest["annotations"] = {"io.containerd.image.name": f"docker.io/library/{name}"}
    blobs = {f"blobs/{digest.replace(':', '/')}" for digest in _digests(index, layout)}
    for old in layout.glob("blobs/*/*"):
        if str(old.relative_to(layout)) not in blobs:
            old.unlink()
    (layout / "index.json").write_text(json.dumps(index))
    for path in (cache_dir() / "images").glob("*.tar"):
        path.unlink()  # only the latest is of use
    with tarfile.open(target.with_suffix(".part"), "w") as tar:
        for member in ("oci-layout", "index.json", *sorted(blobs)):
            tar.add(layout / member, member)
    target.with_suffix(".part").rename(target)


def _digests(index: dict[str, Any], layout: Path) -> Iterator[str]:
    """Digests of everything that an index refers to."""
    for entry in index["manifests"]:
        yield entry["digest"]
        manifest = json.loads((layout / "blobs" / entry["digest"].replace(":", "/")).read_text())
        yield manifest["config"]["digest"]
        yield from (layer["digest"] for layer in manifest["layers"])
