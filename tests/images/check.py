"""Build the images for real, check them, and run them: `make images-check`.

It needs Linux with buildah and mmdebstrap (Debian has both), and the rights of root; no daemon and no registry. The
report is `out/images/report.json`, with the packages of each image. The exit code is 1 if a check found something.
Options: --keep keeps the built images in the storage, for `make test-kubernetes`; --reuse checks images that were kept.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s2v_tasks import __version__
from s2v_tasks.embedded.stack import Services
from s2v_tasks.settings import load_settings
from tests.images import compose, findings
from tests.images.builder import PYTHON_BASE, ROOT, Build, Builder, Built
from tests.images.container import Container

HOME = Path(os.environ.get("IMAGES_HOME") or Path.home() / ".cache" / "s2v-images")
REPORT = ROOT / "out" / "images" / "report.json"
_TAGS = {"steps": "localhost/s2v-steps:check", "engine": "localhost/s2v-engine:check",
         "airflow": "localhost/s2v-airflow:check", "compose": compose.TAG}  # fmt: skip
_FFMPEG = (
    "import subprocess; from s2v_tasks.media.ffmpeg import tool_path; "
    "subprocess.run([tool_path('ffmpeg'), '-version'], check=True)"
)
_NO_IMPORT_ERRORS = (
    "from airflow.dag_processing.dagbag import DagBag; bag = DagBag('/opt/airflow/dags'); "
    "assert not bag.import_errors, bag.import_errors; print(len(bag.dags))"
)
_VARIABLES = ("S2V_DATABASE_URL", "S2V_S3_ENDPOINT_URL", "S2V_S3_ACCESS_KEY_ID", "S2V_S3_SECRET_ACCESS_KEY",
              "S2V_DATA_URI", "S2V_OUTPUT_URI", "S2V_MODEL", "S2V_GPU")  # fmt: skip


def builds(builder: Builder) -> list[Build]:
    """Return the images to build, with the arguments that a release gives them."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    labels = {"REVISION": git.stdout.strip(), "VERSION": __version__}
    cpu = {"TORCH_INDEX_URL": builder.sources.torch_index()}
    airflow = builder.airflow_base()
    return [
        Build(_TAGS["steps"], "steps", builder.python_base(), labels),
        Build(_TAGS["engine"], "engine", PYTHON_BASE, labels | cpu),
        Build(_TAGS["airflow"], "airflow", airflow, labels),
        Build(_TAGS["compose"], "airflow", airflow, labels | cpu | {"ENGINE": "cpu"}),
    ]


@contextmanager
def mounted(builder: Builder, image: str) -> Iterator[Path]:
    """Yield the files of an image in a working container, which is removed afterwards."""
    name = builder("from", "--pull=never", image).strip()
    try:
        yield Path(builder("mount", name).strip())
    finally:
        builder("rm", name)


def examine(builder: Builder, built: Built, root: Path, services: dict[str, str], snapshot: Path) -> dict[str, Any]:
    """Check an image and run its commands; return what was measured and what was found."""
    build = built.build
    renders = build.folder == "engine" or build.arguments.get("ENGINE") == "cpu"
    found = findings.configuration(built)
    with mounted(builder, build.base) as base:
        files = findings.Files(root, base)
        size, base_size = files.size_bytes(), findings.Files(base, base).size_bytes()
        found += findings.compilers(files, expected=build.folder == "engine")
        found += findings.secrets(files, builder.sources.hosts())
        for check in findings.CHECKS.values():
            found += check(files)
    environment = services | {"S2V_EXECUTION": "local" if renders else "kubernetes", "AIRFLOW_HOME": "/tmp/airflow"}  # noqa: S108
    mounts = {snapshot: "/mnt"} if renders else {}
    if renders:
        environment["S2V_SNAPSHOT_PATH"] = "/mnt"
    container = Container(built, root, environment, mounts)
    packages, unpinned = findings.bill_of_materials(container, "python")
    return {
        "image": build.tag,
        "seconds": built.seconds,
        "layers": built.num_layers(),
        "size_mb": round(size / 1e6),
        "added_mb": round((size - base_size) / 1e6),
        "user": built.config["User"],
        "entry_point": built.config["Entrypoint"],
        "labels": built.config["Labels"],
        "runs": run_inside(container, airflow=build.folder == "airflow"),
        "packages": packages,
        "findings": found + unpinned,
    }


def run_inside(container: Container, *, airflow: bool) -> dict[str, str]:
    """Run the commands that every image must have, as its user and with a read-only root; return what they say."""
    commands = {
        "s2v --version": ("s2v", "--version"),
        "ffmpeg -version": ("python", "-c", _FFMPEG),
        "s2v check": ("s2v", "check"),
        "writes in its root": ("sh", "-c", "! touch /opt/new 2>/dev/null && ! touch /new 2>/dev/null && echo none"),
    }
    if airflow:
        commands["DAGs without import errors"] = ("python", "-c", _NO_IMPORT_ERRORS)
    said = {name: container.run(*command).strip().splitlines() for name, command in commands.items()}
    return {name: lines[0 if name.startswith("ffmpeg") else -1] for name, lines in said.items()}


def table(images: list[dict[str, Any]]) -> str:
    """Return the measurements as the rows of a Markdown table."""
    rows = ["| image | size | above its base | layers | build |", "|---|---|---|---|---|"]
    for image in images:
        name = image["image"].removeprefix("localhost/")
        sizes = f"{image['size_mb']} MB | {image['added_mb']} MB"
        rows.append(f"| `{name}` | {sizes} | {image['layers']} | {image['seconds']:.0f} s |")
    return "\n".join(rows)


def check(work: Path, *, reuse: bool, keep: bool) -> list[dict[str, Any]]:
    """Build the images and check each of them; `work` is a folder that every account can reach."""
    os.environ["S2V_HOME"] = str(work / "home")
    load_settings.cache_clear()
    builder, services, images = Builder(HOME, work), Services(work / "home"), []
    with services.in_use() as settings:  # before the builds, which take minutes
        for path in (work / "home" / "snapshots").rglob("*.safetensors"):
            path.chmod(0o644)  # they are written for their owner alone
        lines = (work / "home" / "stack.env").read_text().splitlines()
        values = {line.partition("=")[0]: line.partition("=")[2].strip("'") for line in lines if "=" in line}
        environment = {name: values[name] for name in _VARIABLES}
        wanted = builds(builder)
        finished = [builder.built(build) if reuse else builder.build(build) for build in wanted]
        for built in finished:
            with mounted(builder, built.build.tag) as root:
                images.append(examine(builder, built, root, environment, work / "home" / "snapshots" / "talker"))
                if built.build.tag == compose.TAG:
                    stack = compose.Stack(Container(built, root), services, settings, work)
                    images[-1]["compose"] = stack.render_a_video()
    if not keep:
        builder("rmi", "--force", *(build.tag for build in wanted))
    return images


def main() -> int:
    """Build, check and run; return the exit code."""
    parser = argparse.ArgumentParser(prog="make images-check", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the built images")
    parser.add_argument("--reuse", action="store_true", help="check the images of an earlier run with --keep")
    options = parser.parse_args()
    missing = [name for name in ("buildah", "mmdebstrap", "unshare") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        print(f"images-check needs root and {', '.join(missing) or 'nothing else'}: apt-get install buildah mmdebstrap")
        return 2
    HOME.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="s2v-images-") as folder:
        Path(folder).chmod(0o755)
        images = check(Path(folder), reuse=options.reuse, keep=options.keep)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps({"images": images}, indent=1) + "\n", encoding="utf-8")
    print(table(images))
    print(f"services of the compose file: {images[-1]['compose']}")
    print(f"{time.monotonic() - begun:.0f} s in all")
    found = [f"{image['image']}: {finding}" for image in images for finding in image["findings"]]
    print("\n".join(found) or f"nothing found; {REPORT.relative_to(ROOT)} has the packages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
