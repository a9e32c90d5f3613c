"""Checks of a built image: what its files and its configuration must contain, and what they must not contain."""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.contracts.pins import ROOT
from tests.images.builder import Built
from tests.images.container import Container

_COMPILERS = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|clang|cc1|cc1plus|ld|make|rustc|go|nvcc)(-\d+(\.\d+)*)?")
_CACHE_FOLDERS = ("root/.cache", "home/airflow/.cache", "tmp/.cache", "var/lib/apt/lists", "var/cache/apt/archives")
_PRIVATE_FILES = re.compile(
    r"\.env|\.git|\.netrc|\.pypirc|\.npmrc|id_(rsa|ed25519|ecdsa)|credentials|kubeconfig|stack\.env"
)
_PRIVATE_KEY = re.compile(rb"-----BEGIN (RSA |EC |OPENSSH |DSA |ENCRYPTED )?PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}")
_SECRET_NAME = re.compile(r"SECRET|PASSWORD|TOKEN|_KEY|CREDENTIAL", re.IGNORECASE)
_TEXT_BYTES = 2**20
# Folders of a running system, and those in which everyone may write.
_SYSTEM = {"proc", "sys", "dev"}
_STICKY = {"tmp", "var/tmp", "run/lock", "var/lock"}


class Files:
    """The files of an image above those of its base."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self._base = base

    def all(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield every file and folder of the image, relative to its root."""
        for folder, names, files in os.walk(self.root):
            here = Path(folder).relative_to(self.root)
            if here == Path():
                names[:] = [name for name in names if name not in _SYSTEM]
            for name in (*names, *files):
                yield here / name, (self.root / here / name).lstat()

    def added(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield what the base does not have, or has with another size or mode."""
        for path, state in self.all():
            try:
                before = (self._base / path).lstat()
            except OSError:
                yield path, state
                continue
            same_size = stat.S_ISDIR(state.st_mode) or before.st_size == state.st_size
            if before.st_mode != state.st_mode or not same_size:
                yield path, state

    def size_bytes(self) -> int:
        """Return the bytes of all regular files, each hard link once."""
        return sum({state.st_ino: state.st_size for _, state in self.all() if stat.S_ISREG(state.st_mode)}.values())


Findings = list[str]


def configuration(built: Built) -> Findings:
    """Find what the configuration of an image lacks: account, labels, entry point; and secrets in it."""
    found = []
    config, labels = built.config, built.config.get("Labels") or {}
    if not re.fullmatch(r"[1-9]\d*(:\d+)?", str(config.get("User"))):
        found.append(f"user {config.get('User')!r}: expected a number that is not root's")
    if not config.get("Entrypoint"):
        found.append("no entry point")
    expected = {name.lower(): built.build.arguments[name] for name in ("REVISION", "VERSION")} | {
        "title": f"s2v-{built.build.folder}", "licenses": "Apache-2.0",
    }  # fmt: skip
    for name, value in expected.items():
        label = labels.get(f"org.opencontainers.image.{name}")
        if label != value:
            found.append(f"label {name} is {label!r}: expected {value!r}")
    for entry in config["Env"]:
        if _SECRET_NAME.search(entry.partition("=")[0]):
            found.append(f"variable {entry.partition('=')[0]} may be a secret")
    return found


def compilers(files: Files, *, expected: bool) -> Findings:
    """Find compilers; the engine image has one, for torch.compile."""
    tools = {
        path.name
        for path, state in files.all()
        if path.parent.name == "bin" and not stat.S_ISDIR(state.st_mode) and _COMPILERS.fullmatch(path.name)
    }
    if expected:
        return [] if "gcc" in tools else ["no gcc: torch.compile needs it"]
    return [f"compiler {name}" for name in sorted(tools)]


def caches(files: Files) -> Findings:
    """Find caches of pip and apt."""
    return [
        f"cache {path} of {state.st_size} bytes"
        for path, state in files.all()
        if stat.S_ISREG(state.st_mode)
        and state.st_size
        and (any(path.is_relative_to(folder) for folder in _CACHE_FOLDERS) or path.name == "pkgcache.bin")
    ]


def secrets(files: Files, words: set[str]) -> Findings:
    """Find files that hold secrets, private keys, and the names of package sources of the building machine."""
    found = []
    for path, state in files.added():
        if _PRIVATE_FILES.fullmatch(path.name) and not _belongs_to_a_package(path):
            found.append(f"file {path}")
        if not stat.S_ISREG(state.st_mode) or not 0 < state.st_size <= _TEXT_BYTES:
            continue
        content = (files.root / path).read_bytes()
        if _PRIVATE_KEY.search(content) and not _is_published(path):
            found.append(f"private key in {path}")
        found += [f"{word} in {path}" for word in words if word.encode() in content]
    return found


def _is_published(path: Path) -> bool:
    """Return True for the tests of an installed package, whose keys are public."""
    return "site-packages" in path.parts and path.parent.name in {"test", "tests"}


def _belongs_to_a_package(path: Path) -> bool:
    """Return True for a module of an installed package, such as a folder called credentials."""
    return "site-packages" in path.parts and not path.name.startswith(".")


def rights(files: Files) -> Findings:
    """Find files that every account may write or that run as another account."""
    found = []
    for path, state in files.all():
        mode = state.st_mode
        if mode & stat.S_IWOTH and not stat.S_ISLNK(mode) and not (str(path) in _STICKY and mode & stat.S_ISVTX):
            found.append(f"world-writable {path}")
    for path, state in files.added():
        if state.st_mode & (stat.S_ISUID | stat.S_ISGID) and stat.S_ISREG(state.st_mode):
            found.append(f"setuid {path}")
    return found


def foreign_files(files: Files) -> Findings:
    """Find files outside of the folders that the Dockerfiles fill, for example traces of the mounts of a build."""
    ours = ("opt/s2v", "opt/airflow", "home/airflow", "usr/local/bin/fetch-snapshot")
    of_debian = ("usr", "lib", "lib64", "etc", "var")  # of the compiler
    has_compiler = (files.root / "usr/bin/gcc").exists()
    return [
        f"file {path}"
        for path, state in files.added()
        if not stat.S_ISDIR(state.st_mode)
        and not any(path.is_relative_to(folder) for folder in ours)
        and not (has_compiler and path.parts[0] in of_debian)
    ]


def bill_of_materials(container: Container, python: str) -> tuple[dict[str, str], Findings]:
    """Return the installed packages with their versions, and those whose version is not the pinned one."""
    report = json.loads(container.run(python, "-m", "pip", "inspect", "--local"))
    packages = {_normal(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in report["installed"]}
    pins = {}
    for line in (ROOT / "config" / "constraints-py311.txt").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        pins[_normal(name)] = version
    found = []
    for name, version in packages.items():
        if name not in {"pip", "setuptools", "s2v-tasks"} and pins.get(name) != version.partition("+")[0]:
            found.append(f"{name} {version}: expected {pins.get(name) or 'a pin in the constraints'}")
    return packages, found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


CHECKS: dict[str, Callable[[Files], Findings]] = {"caches": caches, "rights": rights, "foreign files": foreign_files}
