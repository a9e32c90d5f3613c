"""Check that the checks of `make images-check` find faults in folders that represent the files of an image."""

from pathlib import Path

import pytest

from tests.images import findings
from tests.images.builder import Build, Built
from tests.images.findings import Files

LABELS = {
    f"org.opencontainers.image.{name}": value
    for name, value in {"title": "s2v-steps", "licenses": "Apache-2.0", "revision": "abc", "version": "1"}.items()
}
KEY = f"-----BEGIN PRIVATE KEY-----\n{64 * 'A'}\n"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """The files of an image with one file above its base."""
    for root in ("base", "image"):
        (tmp_path / root / "etc").mkdir(parents=True)
        (tmp_path / root / "etc/os-release").write_text("Debian")
    (tmp_path / "image/opt/s2v/bin").mkdir(parents=True)
    (tmp_path / "image/opt/s2v/bin/s2v").write_text("#!/opt/s2v/bin/python")
    return Files(tmp_path / "image", tmp_path / "base")


def write(files: Files, path: str, content: str = "content", mode: int = 0o644) -> None:
    place = files.root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)
    place.chmod(mode)


def built(**config: object) -> Built:
    build = Build("localhost/s2v-steps:check", "steps", "base", {"REVISION": "abc", "VERSION": "1"})
    good: dict[str, object] = {"User": "10001:10001", "Entrypoint": ["s2v"], "Labels": LABELS, "Env": ["PATH=/bin"]}
    return Built(build, 1.0, good | config)


def test_a_good_image_has_no_findings(files: Files) -> None:
    """An image with files of the package and a complete configuration has no findings."""
    assert findings.configuration(built()) == []
    assert findings.secrets(files, {"packages.example.com"}) == []
    assert findings.compilers(files, expected=False) == []
    assert [found for check in findings.CHECKS.values() for found in check(files)] == []
    assert files.size_bytes() == len("Debian") + len("#!/opt/s2v/bin/python")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"User": "root"}, "user 'root': expected a number that is not root's"),
        ({"User": "0:0"}, "user '0:0'"),
        ({"Entrypoint": None}, "no entry point"),
        ({"Labels": LABELS | {"org.opencontainers.image.revision": ""}}, "label revision is '': expected 'abc'"),
        ({"Env": ["HF_TOKEN=hush"]}, "variable HF_TOKEN may be a secret"),
    ],
)
def test_a_wrong_configuration_is_found(config: dict[str, object], words: str) -> None:
    """A wrong account, entry point or label is found, and secrets in the environment are named without their values."""
    (found,) = findings.configuration(built(**config))
    assert words in found
    assert "hush" not in found


@pytest.mark.parametrize("name", ["gcc", "x86_64-linux-gnu-gcc-12", "g++", "cc", "ld", "make"])
def test_compilers_are_found(files: Files, name: str) -> None:
    """A compiler is found under each of its names; only the engine image must have one."""
    assert findings.compilers(files, expected=True) == ["no gcc: torch.compile needs it"]
    write(files, f"usr/bin/{name}")
    assert findings.compilers(files, expected=False) == [f"compiler {name}"]


@pytest.mark.parametrize(
    ("path", "check"),
    [
        ("root/.cache/pip/http", "caches"),
        ("var/lib/apt/lists/main_Packages", "caches"),
        ("etc/pip.conf", "foreign files"),
        ("opt/wheels/torch.whl", "foreign files"),
    ],
)
def test_leftovers_of_a_build_are_found(files: Files, path: str, check: str) -> None:
    """Caches, and mounts that became files of a layer, are found."""
    write(files, path)
    (found,) = findings.CHECKS[check](files)
    assert path in found


def test_rights_that_are_too_wide_are_found(files: Files) -> None:
    """Files that every account may write outside of /tmp, and files that run as their owner, are found."""
    (files.root / "tmp").mkdir()
    (files.root / "tmp").chmod(0o1777)
    write(files, "opt/s2v/open", mode=0o666)
    write(files, "opt/s2v/bin/su", mode=0o4755)
    assert findings.rights(files) == ["world-writable opt/s2v/open", "setuid opt/s2v/bin/su"]


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("opt/s2v/.env", "A=1", "file opt/s2v/.env"),
        ("opt/s2v/key.pem", KEY, "private key in opt/s2v/key.pem"),
        ("opt/s2v/lib/direct_url.json", "https://packages.example.com/simple", "packages.example.com in"),
    ],
)
def test_secrets_and_private_hosts_are_found(files: Files, path: str, content: str, words: str) -> None:
    """Files with secrets or private host names are found by their name and by their content."""
    write(files, path, content)
    (found,) = findings.secrets(files, {"packages.example.com"})
    assert words in found
