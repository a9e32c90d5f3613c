"""A real Kubernetes, a real Airflow beside it, and functions by which tests control both."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.stack import Services
from s2v_tasks.metadata.session import engine_from_settings
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.settings import Settings, load_settings
from tests.kubernetes.cluster import HOLD_MODULE, NUM_GPUS, REPOSITORY, Cluster, Kubectl
from tests.kubernetes.holding import Hold
from tests.kubernetes.images import import_image
from tests.kubernetes.serving import Airflow, EmbeddedAirflow, small_request

OLDEST_KUBECTL = (1, 30)  # as docs/how-to/first-clip-on-kubernetes.md requires
CLUSTER_SCRIPT = REPOSITORY.parent / "shared" / "kubernetes" / "cluster.sh"


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """The configuration of a cluster on this machine: KUBECONFIG, else that of the script."""
    if path := os.environ.get("KUBECONFIG"):
        return path
    if not CLUSTER_SCRIPT.is_file():
        pytest.skip(
            f"KUBECONFIG is not set and {CLUSTER_SCRIPT} is not there: expected a one-node cluster on this machine"
        )
    done = subprocess.run(["/bin/bash", CLUSTER_SCRIPT, "up"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.exit(
            f"The cluster does not start: {done.stderr.strip() or f'exit code {done.returncode}'}\n"
            f"Build it once by `{CLUSTER_SCRIPT} deps`, `build` and `images`, or set KUBECONFIG to a cluster on this "
            "machine.",
            returncode=1,
        )
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture
def apiserver(kubeconfig: str) -> int:
    """The process of the API server, whose pid the script has written beside its configuration."""
    path = Path(kubeconfig).with_name("apiserver.pid")
    if not path.is_file():
        pytest.skip(f"{path} is not there: expected a cluster whose API server can be stopped")
    return int(path.read_text())


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A home folder of running services that the account of the pods can read."""
    folder = Path(tempfile.mkdtemp(prefix="s2v-kubernetes-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def config_dir(home: Path) -> Path:
    """A copy of `config` for a cluster that is adapted to this node."""
    folder = home / "config"
    shutil.copytree(REPOSITORY / "config", folder)
    return folder


@pytest.fixture(scope="session")
def engine_image(kubeconfig: str) -> str:
    """The name of the engine image of this checkout, which the node has."""
    if (version := Kubectl(kubeconfig).version()) < OLDEST_KUBECTL:
        pytest.skip(f"kubectl is {version}, but its kustomize must be that of {OLDEST_KUBECTL}: put it on PATH")
    missing = [name for name in ("buildah", "mmdebstrap", "ctr") if not shutil.which(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: the pods run in the engine image, which the tests build")
    return import_image(kubeconfig, "engine")


@pytest.fixture(scope="session")
def installed(home: Path, config_dir: Path, kubeconfig: str, engine_image: str) -> Iterator[tuple[Services, Cluster]]:
    """Services and the namespace of the pods; the cluster is left as it was found."""
    with ExitStack() as cleanup:
        with _home_of_settings(home):
            services = Services(home)
            cleanup.enter_context(services.in_use())
        for path in (home / "snapshots").rglob("*.safetensors"):
            path.chmod(0o644)  # they are written for their owner alone
        cluster = Cluster(kubeconfig, config_dir, engine_image)
        cleanup.callback(cluster.uninstall)
        cluster.install(_values(home))
        yield services, cluster


@pytest.fixture
def values(home: Path, installed: object) -> dict[str, str]:
    """The settings of the running services."""
    return _values(home)


@pytest.fixture(scope="session")
def running(
    home: Path, config_dir: Path, installed: tuple[Services, Cluster]
) -> Iterator[tuple[EmbeddedAirflow, Cluster]]:
    """Services, cluster, and an Airflow beside the cluster."""
    services, cluster = installed
    with ExitStack() as cleanup:
        with _home_of_settings(home) as patch:
            variables = {
                "S2V_EXECUTION": "kubernetes",
                "S2V_CONFIG_DIR": str(config_dir),
                "S2V_POD_SCHEDULE_SECONDS": "30",
                "KUBECONFIG": cluster.worker.kubeconfig,  # not the administrator's
            }
            for name, value in variables.items():
                patch.setenv(name, value)
            installation = AirflowInstallation(home)
            environment = installation.environment(services.postgres.ensure_database("airflow"))
            environment["AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT"] = "30"  # to miss a lost worker soon
            environment |= {"PYTHONPATH": str(HOLD_MODULE), "HOLD_FOLDER": str(cluster.hold_folder)}  # to hold workers
            installation.start(environment)
            cleanup.callback(installation.stop)
        airflow = EmbeddedAirflow(installation, environment)
        airflow.call("/dags/s2v_drop_folder", {"is_paused": True}, "PATCH")  # not needed, and it runs every minute
        airflow.call("/pools", {"name": "gpu", "slots": NUM_GPUS, "include_deferred": True})
        yield airflow, cluster


def _values(home: Path) -> dict[str, str]:
    lines = (home / "stack.env").read_text().splitlines()
    return {line.partition("=")[0]: line.partition("=")[2].strip("'") for line in lines if "=" in line}


@contextmanager
def _home_of_settings(home: Path) -> Iterator[pytest.MonkeyPatch]:
    """Let this process use the settings of a home folder for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2V_HOME", str(home))
        load_settings.cache_clear()
        yield patch


@pytest.fixture
def airflow(running: tuple[EmbeddedAirflow, Cluster]) -> EmbeddedAirflow:
    return running[0]


@pytest.fixture
def cluster(running: tuple[EmbeddedAirflow, Cluster], config_dir: Path) -> Iterator[Cluster]:
    """The cluster; changes of its templates end with the test."""
    templates = {path: path.read_text() for path in (config_dir / "pods").glob("*.yaml")}
    yield running[1]
    for path, text in templates.items():
        path.write_text(text)


@pytest.fixture
def stack(installed: tuple[Services, Cluster], home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of the running services, for this process and its children."""
    monkeypatch.setenv("S2V_HOME", str(home))
    load_settings.cache_clear()
    return load_settings()


@pytest.fixture
def render_here(stack: Settings) -> Callable[..., None]:
    """Runs all steps of a job one after the other on this machine."""

    def step(job_id: str, name: str, *arguments: str) -> Any:
        command = [sys.executable, "-m", "s2v_tasks.cli", name, "--job-id", job_id, *arguments]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def render(job_id: str, **fields: Any) -> None:
        step(job_id, "stage-inputs", "--request-json", json.dumps(small_request() | fields))
        tasks = step(job_id, "plan-clips")["clips"]
        step(job_id, "encode-conditions")
        for task in tasks:
            step(job_id, "render-clip", "--clip-index", str(task["clip_index"]), "--count", str(task["count"]))
        for name in ("stitch", "mux-audio", "validate", "publish"):
            step(job_id, name)

    return render


@pytest.fixture
def job(stack: Settings) -> Callable[[str], Job]:
    """Return the row of a job in PostgreSQL."""

    def look_up(job_id: str) -> Job:
        engine = engine_from_settings(stack)
        try:
            found = MetadataStore(engine).jobs.get(job_id)
        finally:
            engine.dispose()
        assert found is not None
        return found

    return look_up


@pytest.fixture
def hold(airflow: Airflow, cluster: Cluster, job: Callable[[str], Job]) -> Iterator[Hold]:
    """Holds renders at a solver step; all are released when the test ends."""
    yield Hold(airflow, cluster, job)
    for path in cluster.hold_folder.iterdir():
        path.unlink()
