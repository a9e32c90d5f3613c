"""A real Kubernetes, a real Airflow beside it, and what the tests do to both.

The pods are those of `config/pods` as far as one node without GPUs allows: Python, the packages and the sources are
mounted from this machine instead of an image, and the network is its own, on whose loopback S3 and PostgreSQL are.
"""

# ruff: noqa: S310 - the address is that of the server under test

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.stack import Services
from s2v_tasks.metadata.records import JobRecord
from s2v_tasks.metadata.repository import Ledger
from s2v_tasks.metadata.session import engine_from_settings
from s2v_tasks.settings import Settings, load_settings

REPOSITORY = Path(__file__).parents[2]
CLUSTER_SCRIPT = REPOSITORY.parent / "shared" / "kubernetes" / "cluster.sh"
NAMESPACE = "s2v"
SECRETS = ("S2V_DATABASE_URL", "S2V_S3_ACCESS_KEY_ID", "S2V_S3_SECRET_ACCESS_KEY")
SHARED = ("S2V_S3_ENDPOINT_URL", "S2V_DATA_URI", "S2V_OUTPUT_URI", "S2V_MODEL", "S2V_GPU")
ENDED = {"success", "failed"}
SMALL: dict[str, Any] = {"num_clip": 3, "infer_frames": 16, "sample_steps": 2, "size": "128*128", "base_seed": 7}


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """Path of the configuration of a cluster that is this machine: KUBECONFIG, else the script's."""
    if path := os.environ.get("KUBECONFIG"):
        return path
    if not CLUSTER_SCRIPT.is_file():
        pytest.skip(
            f"KUBECONFIG is not set and {CLUSTER_SCRIPT} is not there: expected a one-node cluster on this machine"
        )
    done = subprocess.run(["/bin/bash", CLUSTER_SCRIPT, "up"], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture
def apiserver(kubeconfig: str) -> int:
    """The process of the API server, as the script that starts it has noted it beside its configuration."""
    path = Path(kubeconfig).with_name("apiserver.pid")
    if not path.is_file():
        pytest.skip(f"{path} is not there: expected a cluster whose API server can be stopped")
    return int(path.read_text())


def for_this_node(template: dict[str, Any], home: Path) -> dict[str, Any]:
    """A template of `config/pods` without what this node lacks: GPUs, an image, a network for pods, classes."""
    spec = template["spec"]
    for name in ("nodeSelector", "tolerations", "priorityClassName"):
        del spec[name]
    container = spec["containers"][0]
    mounted = {"python": sys.base_prefix, "packages": sysconfig.get_path("purelib"), "sources": str(REPOSITORY)}
    spec |= {"hostNetwork": True}
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != "snapshot"]
    spec["volumes"] += [{"name": n, "hostPath": {"path": p}} for n, p in mounted.items()]
    spec["volumes"].append({"name": "snapshot", "hostPath": {"path": str(home / "snapshot")}})
    container["volumeMounts"] += [{"name": n, "mountPath": f"/mnt/{n}", "readOnly": True} for n in mounted]
    container["image"] = "python:3.11"
    container["command"] = [f"/mnt/python/bin/{Path(sys.executable).resolve().name}", "-B"]
    container["env"].append({"name": "PYTHONPATH", "value": "/mnt/sources:/mnt/packages"})
    container["env"].append({"name": "LD_LIBRARY_PATH", "value": "/mnt/python/lib"})
    container["env"].append({"name": "OMP_WAIT_POLICY", "value": "passive"})  # the processors are shared
    container["resources"] = {"requests": {"cpu": "500m", "memory": "3Gi"}, "limits": {"cpu": "2", "memory": "3Gi"}}
    return template


class Cluster:
    """The namespace of the pods."""

    def __init__(self, core: Any, config_dir: Path) -> None:
        self.core = core
        self.config_dir = config_dir

    def pods(self, job_id: str, **labels: str) -> list[Any]:
        """The pods of a job that are there."""
        wanted = {"s2v/job-id": job_id} | labels
        selector = ",".join(f"{name}={value}" for name, value in wanted.items())
        return list(self.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items)

    def rendering(self, job_id: str, clip_index: int) -> Any | None:
        """The pod that renders a clip, once its container runs."""
        for pod in self.pods(job_id, **{"s2v/clip-index": str(clip_index)}):
            if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp:
                return pod
        return None

    def change_template(self, step: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
        """Change a pod template for the pods to come; `change` gets the spec and its container."""
        path = self.config_dir / "pods" / f"{step.replace('-', '_')}.yaml"
        template = yaml.safe_load(path.read_text())
        change(template["spec"], template["spec"]["containers"][0])
        path.write_text(yaml.safe_dump(template))


class Airflow:
    """The embedded Airflow, by its REST API."""

    def __init__(self, installation: AirflowInstallation, environment: dict[str, str]) -> None:
        self.installation = installation
        self.environment = environment

    def call(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.installation.url}/api/v2{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def kill(self, component: str) -> None:
        """End a component and all that it has started, without a word."""
        pids = [int((self.installation.folder / f"{component}.pid").read_text())]
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += [int(child) for child in task.read_text().split()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.wait(lambda: not any(_runs(pid) for pid in pids), 30)  # `revive` must find it gone

    def revive(self) -> None:
        """Start what does not run any more."""
        self.installation.start(self.environment)

    def trigger(self, **fields: Any) -> str:
        """Start a run; its path in the API."""
        body = {"logical_date": None, "conf": small_request() | fields}
        run_id = self.call("/dags/speech_to_video/dagRuns", body)["dag_run_id"]
        return f"/dags/speech_to_video/dagRuns/{urllib.parse.quote(run_id)}"

    def ended(self, run: str) -> str | None:
        """The state of a run that has ended."""
        state = str(self.call(run)["state"])
        return state if state in ENDED else None

    def outcome(self, run: str, seconds: float = 900) -> str:
        """The state of a run when it has ended."""
        return str(self.wait(lambda: self.ended(run), seconds))

    def wait(self, what: Callable[[], Any], seconds: float = 300) -> Any:
        """The first true value of `what`."""
        deadline = time.monotonic() + seconds
        while not (value := what()):
            assert time.monotonic() < deadline, f"still {value} after {seconds} s"
            time.sleep(0.5)
        return value

    def tasks(self, run: str) -> list[dict[str, Any]]:
        return list(self.call(f"{run}/taskInstances?limit=200")["task_instances"])

    def task(self, run: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        return next(t for t in self.tasks(run) if (t["task_id"], t["map_index"]) == (task_id, map_index))

    def log(self, run: str, task_id: str, map_index: int = -1) -> str:
        """The log of all tries of a task."""
        last = self.task(run, task_id, map_index)["try_number"]
        text = ""
        for number in range(1, last + 1):
            answer = self.call(f"{run}/taskInstances/{task_id}/logs/{number}?map_index={map_index}&full_content=true")
            text += "\n".join(json.dumps(line) for line in answer["content"]) + "\n"  # with the details of errors
        return text


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def small_request() -> dict[str, Any]:
    """The request of the demo, three clips of it, as small as they can be."""
    return yaml.safe_load((REPOSITORY / "config/demo.yaml").read_text()) | SMALL


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """Home folder of running services that the account of the pods can read."""
    folder = Path(tempfile.mkdtemp(prefix="s2v-kubernetes-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def config_dir(home: Path) -> Path:
    """A copy of `config` whose pods run on this node."""
    folder = home / "config"
    shutil.copytree(REPOSITORY / "config", folder)
    return folder


@pytest.fixture(scope="session")
def running(home: Path, config_dir: Path, kubeconfig: str) -> Iterator[tuple[Airflow, Cluster]]:
    """Services, namespace and Airflow; the cluster is left as it was found."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as cleanup:
        patch.setenv("S2V_HOME", str(home))
        load_settings.cache_clear()
        services = Services(home)
        cleanup.enter_context(services.in_use())
        for path in (home / "snapshot").rglob("*.safetensors"):
            path.chmod(0o644)  # they are written for their owner alone
        for path in (config_dir / "pods").glob("*.yaml"):
            path.write_text(yaml.safe_dump(for_this_node(yaml.safe_load(path.read_text()), home)))
        variables = {
            "S2V_EXECUTION": "kubernetes",
            "S2V_CONFIG_DIR": str(config_dir),
            "S2V_POD_SCHEDULE_SECONDS": "30",
            "KUBECONFIG": kubeconfig,
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        cluster = Cluster(_namespace(kubeconfig, home, cleanup), config_dir)
        installation = AirflowInstallation(home)
        environment = installation.environment(services.postgres.ensure_database("airflow"), deferrable=True)
        installation.start(environment)
        cleanup.callback(installation.stop)
        airflow = Airflow(installation, environment)
        airflow.call("/dags/s2v_drop_folder", {"is_paused": True}, "PATCH")  # not needed, and it runs every minute
        airflow.call("/pools", {"name": "gpu", "slots": 2, "include_deferred": True})
        patch.undo()
        yield airflow, cluster


def _namespace(kubeconfig: str, home: Path, cleanup: ExitStack) -> Any:
    """A namespace with the ConfigMap and the Secret that the pods refer to; the client of its cluster."""
    core = client.CoreV1Api(config.new_client_from_config(kubeconfig))
    lines = (home / "stack.env").read_text().splitlines()
    values = {line.partition("=")[0]: line.partition("=")[2].strip("'") for line in lines if "=" in line}
    meta = client.V1ObjectMeta
    core.create_namespace(client.V1Namespace(metadata=meta(name=NAMESPACE)))
    cleanup.callback(core.delete_namespace, NAMESPACE)
    core.create_namespaced_config_map(
        NAMESPACE, client.V1ConfigMap(metadata=meta(name="s2v-settings"), data={n: values[n] for n in SHARED})
    )
    core.create_namespaced_secret(
        NAMESPACE, client.V1Secret(metadata=meta(name="s2v-credentials"), string_data={n: values[n] for n in SECRETS})
    )
    return core


@pytest.fixture
def airflow(running: tuple[Airflow, Cluster]) -> Airflow:
    return running[0]


@pytest.fixture
def cluster(running: tuple[Airflow, Cluster], config_dir: Path) -> Iterator[Cluster]:
    """The cluster; changes of its templates end with the test."""
    templates = {path: path.read_text() for path in (config_dir / "pods").glob("*.yaml")}
    yield running[1]
    for path, text in templates.items():
        path.write_text(text)


@pytest.fixture
def stack(running: tuple[Airflow, Cluster], home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of the running services, for this process and its children."""
    monkeypatch.setenv("S2V_HOME", str(home))
    load_settings.cache_clear()
    return load_settings()


@pytest.fixture
def render_here(stack: Settings) -> Callable[[str], None]:
    """Runs all steps of a job one after another on this machine."""

    def render(job_id: str) -> None:
        clips = [("render-clip", "--clip-index", str(index)) for index in range(SMALL["num_clip"])]
        steps: list[tuple[str, ...]] = [
            ("stage-inputs", "--request-json", json.dumps(small_request())),
            ("plan-clips",),
            ("encode-conditions",),
            *clips,
            ("stitch",),
            ("mux-audio",),
            ("validate",),
            ("publish",),
        ]
        for step, *arguments in steps:
            command = [sys.executable, "-m", "s2v_tasks.cli", step, "--job-id", job_id, *arguments]
            subprocess.run(command, check=True, capture_output=True)

    return render


@pytest.fixture
def job(stack: Settings) -> Callable[[str], JobRecord]:
    """What PostgreSQL knows about a job."""

    def look_up(job_id: str) -> JobRecord:
        engine = engine_from_settings(stack)
        try:
            found = Ledger(engine).job(job_id)
        finally:
            engine.dispose()
        assert found is not None
        return found

    return look_up
