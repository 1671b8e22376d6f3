from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lab import tools
from lab.catalog import TOOLS, GoModuleFile, GoTool
from lab.errors import ToolError
from lab.paths import MODULES_DIR, cache_dir

ETCD = TOOLS["etcd"]
assert isinstance(ETCD, GoTool)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LAB_TOOLS_DIR", raising=False)
    for name in TOOLS:
        monkeypatch.delenv(tools.variable(name), raising=False)


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    shutil.copytree(MODULES_DIR, tmp_path / "modules")
    return tmp_path / "modules"


def test_key_is_stable_and_ignores_what_does_not_change_the_tool(modules: Path) -> None:
    assert isinstance(ETCD, GoTool)
    key = tools.cache_key(ETCD, modules)
    assert key == tools.cache_key(ETCD)
    assert key == tools.cache_key(replace(ETCD, cold_seconds=1, aliases=("x",)), modules)
    (modules / "helm" / "go.sum").write_text("another tool's pin")
    assert key == tools.cache_key(ETCD, modules)


@pytest.mark.parametrize(
    "changed",
    [
        {"package": "example.com/other"},
        {"ldflags": ("-X a=b",)},
        {"tags": ("netgo",)},
        {"ldflags": ("tags",), "tags": ()},
    ],
)
def test_key_changes_with_the_way_of_building(changed: dict[str, object]) -> None:
    assert isinstance(ETCD, GoTool)
    assert tools.cache_key(replace(ETCD, **changed)) != tools.cache_key(ETCD)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["go.mod", "go.sum"])
def test_key_changes_with_the_pins(modules: Path, name: str) -> None:
    assert isinstance(ETCD, GoTool)
    with (modules / "etcd" / name).open("a") as file:
        file.write("\n")
    assert tools.cache_key(ETCD, modules) != tools.cache_key(ETCD)


def test_every_tool_is_a_tool_of_its_module() -> None:
    for tool in TOOLS.values():
        if isinstance(tool, GoTool):
            assert f"tool {tool.package}\n" in _directives(tool.family), tool.name
        elif isinstance(tool, GoModuleFile):
            assert f"{tool.module} v" in (MODULES_DIR / tool.family / "go.mod").read_text()


def _directives(family: str) -> str:
    lines = (MODULES_DIR / family / "go.mod").read_text().splitlines()
    inside, found = False, []
    for line in lines:
        if line == "tool (":
            inside = True
        elif line == ")":
            inside = False
        elif inside or line.startswith("tool "):
            found.append(f"tool {line.strip().removeprefix('tool ')}\n")
    return "".join(found)


def test_stamped_version_is_the_pinned_one() -> None:
    pinned = next(
        line.split()[1]
        for line in (MODULES_DIR / "kubernetes" / "go.mod").read_text().splitlines()
        if line.strip().startswith("k8s.io/kubernetes v")
    )
    apiserver = TOOLS["kube-apiserver"]
    assert isinstance(apiserver, GoTool)
    assert f"-X k8s.io/component-base/version.gitVersion={pinned}" in apiserver.ldflags


def test_variable_wins_over_directory_over_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert isinstance(ETCD, GoTool)
    assert tools.find("etcd") is None
    for path in (tools.cached_path(ETCD), tmp_path / "dir" / "etcd", tmp_path / "mine"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert tools.find("etcd") == tools.cached_path(ETCD)
    monkeypatch.setenv("LAB_TOOLS_DIR", str(tmp_path / "dir"))
    assert tools.find("etcd") == tmp_path / "dir" / "etcd"
    monkeypatch.setenv("LAB_ETCD", str(tmp_path / "mine"))
    assert tools.find("etcd") == tmp_path / "mine"


def test_istiod_is_found_under_its_package_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pilot-discovery").touch()
    monkeypatch.setenv("LAB_TOOLS_DIR", str(tmp_path))
    assert tools.find("istiod") == tmp_path / "pilot-discovery"


def test_variable_that_points_to_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KUBE_APISERVER", "/nowhere/kube-apiserver")
    with pytest.raises(ToolError, match="LAB_KUBE_APISERVER=/nowhere/kube-apiserver: there is no such file"):
        tools.find("kube-apiserver")


def test_unknown_tool_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ToolError, match=r"no tool 'kubctl'; it knows: etcd, "):
        tools.ensure(["kubctl"])


def test_present_tools_are_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "_build_all", lambda *_: pytest.fail("built something"))
    (tmp_path / "etcd").touch()
    monkeypatch.setenv("LAB_TOOLS_DIR", str(tmp_path))
    assert tools.ensure(["etcd"]) == {"etcd": tmp_path / "etcd"}


def test_cache_follows_xdg_unless_it_is_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "cache" / "canaryrollout-lab"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path.home() / ".cache" / "canaryrollout-lab"


def test_build_does_not_follow_the_users_go_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOFLAGS", "-mod=vendor -tags=x")
    monkeypatch.setenv("GOOS", "plan9")
    environment = tools.build_environment()
    assert environment["GOFLAGS"] == "-mod=readonly"
    assert "GOOS" not in environment
    assert environment["GOTOOLCHAIN"] == "local"


def test_failed_build_shows_the_end_of_its_log_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    go.write_text(
        "#!/bin/sh\n[ $1 = version ] && echo go version go1.26.0 linux/amd64 && exit\necho no such module; exit 4\n"
    )
    go.chmod(0o755)
    monkeypatch.setenv("LAB_GO", str(go))
    with pytest.raises(ToolError, match=r"(?s)etcd could not be built \(exit status 4\); .*    no such module"):
        tools.ensure(["etcd"])
    assert isinstance(ETCD, GoTool)
    assert list(tools.cached_path(ETCD).parent.parent.iterdir()) == []
    assert tools.find("etcd") is None


def test_successful_build_appears_under_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text(
        "#!/bin/sh\n[ $1 = version ] && echo go version go1.26.0 linux/amd64 && exit\n"
        'while [ "$1" != -o ]; do shift; done; echo built > "$2"\n'
    )
    go.chmod(0o755)
    monkeypatch.setenv("LAB_GO", str(go))
    assert isinstance(ETCD, GoTool)
    path = tools.ensure(["etcd"])["etcd"]
    assert path == tools.cached_path(ETCD)
    assert path.read_text() == "built\n"


def test_go_that_is_too_old_is_refused_when_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho go version go1.25.9 linux/amd64\n")
    go.chmod(0o755)
    monkeypatch.setenv("LAB_GO", str(go))
    with pytest.raises(ToolError, match=r"LAB_GO=.* is no Go toolchain of version 1\.26 or newer"):
        tools.ensure(["etcd"])
