"""What a fresh machine meets first: the check before the build, the version, the names that the Makefile promises."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ingest

ROOT = Path(__file__).parent.parent
CHECK = ROOT / "tools" / "check_machine.py"


def check_machine(before: str = "", **environment: str) -> tuple[int, list[str]]:
    """Exit code and complaints of the check, run after ``before`` changed what it sees."""
    # sysconfig and ensurepip look at the version and the platform too, so they do that before those are changed.
    prelude = "import ensurepip, runpy, sys, sysconfig; path = sysconfig.get_path('include')"
    prelude += "; sysconfig.get_config_vars(); sysconfig.get_path = lambda _: path"
    code = f"{prelude}\n{before}\nrunpy.run_path({str(CHECK)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_a_machine_that_has_everything():
    assert check_machine() == (0, [])


@pytest.mark.parametrize(
    ("before", "environment", "complaint"),
    [
        (
            "sys.version_info = (3, 10, 12)",
            {},
            r"Python 3\.11 or later is needed, .* is 3\.10: set PYTHON=.*",
        ),
        ("", {"CC": "no-such-compiler -O2"}, r"no C compiler \(no-such-compiler\): apt-get install gcc .*"),
        ("sys.modules['ensurepip'] = None", {}, r"no module venv for .*: apt-get install python3-venv"),
        ("sys.platform = 'darwin'", {}, r"ingest runs on Linux, not on darwin"),
        (
            "sysconfig.get_path = lambda _: '/nowhere'",
            {},
            r"no Python\.h for .*: apt-get install python3-dev",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(before, environment, complaint):
    code, lines = check_machine(before, **environment)
    assert code == 1
    assert len(lines) == 1
    assert re.fullmatch("cannot build: " + complaint, lines[0])


def test_everything_that_is_missing_is_said_at_once():
    code, lines = check_machine(
        "sys.modules['venv'] = None; sys.version_info = (3, 9, 0)", CC="no-such-compiler"
    )
    assert code == 1
    assert len(lines) == 3


def test_make_without_python_says_so(tmp_path):
    done = subprocess.run(
        ["make", "-C", str(ROOT), "venv", f"VENV={tmp_path}/venv", "PYTHON=no-such-python"],
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "cannot build: there is no no-such-python" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ingest.__version__"}
    assert importlib.metadata.version("ingest") == ingest.__version__, "make dev"


def test_the_newest_chapter_of_the_changelog_is_this_version():
    chapters = re.findall(
        r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert chapters[0] == ("Unreleased", "")
    assert chapters[1][0] == ingest.__version__
    assert all(date for _, date in chapters[1:])
    numbers = [tuple(map(int, number.split("."))) for number, _ in chapters[1:]]
    assert numbers == sorted(numbers, reverse=True)


def test_the_source_archive_has_what_git_has(tmp_path):
    arguments = ["-q", "egg_info", "--egg-base", str(tmp_path)]
    code = f"import setuptools; setuptools.setup(script_args={arguments!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
    packed = set((tmp_path / "ingest.egg-info" / "SOURCES.txt").read_text().split())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("this is no checkout")
    assert sorted(set(tracked.stdout.split()) - packed) == []


def test_what_is_no_python_is_installed_too(tmp_path):
    """What an installation from a wheel has, but for the extensions: setup.py alone knows those."""
    arguments = [
        "-q",
        "egg_info",
        "--egg-base",
        str(tmp_path),
        "build_py",
        "--build-lib",
        str(tmp_path / "lib"),
    ]
    code = f"import setuptools; setuptools.setup(script_args={arguments!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
    for pattern in ("gateway/page/static/*", "csrc/*", "**/*.pyx", "**/*.pxd", "**/*.py", "py.typed"):
        sources = {path.relative_to(ROOT) for path in (ROOT / "ingest").glob(pattern) if path.is_file()}
        assert sources, pattern
        missing = [str(path) for path in sources if not (tmp_path / "lib" / path).is_file()]
        assert missing == []
    used = {path.name for path in (tmp_path / "lib" / "ingest" / "gateway" / "page" / "static").iterdir()}
    assert {"index.html", "page.css", "main.js", "icon.svg"} <= used


def test_make_clean_leaves_the_sources(tmp_path):
    """It removes what Cython writes, HTML too, and not what the page is made of."""
    for name in (
        "ingest/_frame.c",
        "ingest/_frame.html",
        "ingest/_frame.so",
        "ingest/engine/commit/_bulk.c",
        "ingest/csrc/kernel.c",
        "ingest/gateway/page/static/index.html",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    subprocess.run(["make", "-s", "-C", str(tmp_path), "clean"], env=environment, check=True)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["Makefile", "index.html", "kernel.c"]


def test_every_target_of_the_front_page_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    promised = set(
        re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text() + (ROOT / ".ci/run").read_text())
    )
    promised |= set(re.findall(r'^make PYTHON="\$python" (\w+)$', (ROOT / ".ci/run").read_text(), re.M))
    promised -= {"venv"}
    assert {"demo", "test", "lint", "bench"} <= promised <= targets


def test_every_link_of_the_front_page_leads_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
