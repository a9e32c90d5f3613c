"""The cluster as `config/kubernetes` makes it, fitted to one node without GPUs and without an image registry.

The pods are those of `config/pods` in the engine image of this checkout, with its user and its read-only root. What
they still have of this machine, and why:

* its network, because S3 and PostgreSQL listen on its loopback, and pods have no route to it;
* the weights as a mounted folder instead of a claim, because the node has no storage class;
* hold/sitecustomize.py, which holds a render at a solver step, so that a fault meets it there, or spoils a clip;
* Airflow, which runs beside the cluster by the rights of its account.

The node is said to have GPUs, which nobody uses.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

REPOSITORY = Path(__file__).parents[2]
HOLD_MODULE = Path(__file__).parent / "hold"
NAMESPACE = "s2v"
WORKER = {
    "name": "airflow-worker",
    "namespace": "airflow",
}  # its service account, as config/kubernetes/rbac.yaml has it
NUM_GPUS = 2
_SECRETS = ("S2V_DATABASE_URL", "S2V_S3_ACCESS_KEY_ID", "S2V_S3_SECRET_ACCESS_KEY")
_SHARED = ("S2V_S3_ENDPOINT_URL", "S2V_DATA_URI", "S2V_OUTPUT_URI", "S2V_MODEL", "S2V_GPU")
_TOKEN_SECONDS = 4 * 3600


class Kubectl:
    """The command line of Kubernetes, for one account."""

    def __init__(self, kubeconfig: str) -> None:
        self.kubeconfig = kubeconfig
        beside = Path(kubeconfig).parents[1] / "bin" / "kubectl"  # where the script of the cluster builds it
        self._program = shutil.which("kubectl") or str(beside)

    def __call__(self, *arguments: str, documents: list[dict[str, Any]] | None = None) -> str:
        """Return the output of the command; an error shows its stderr."""
        done = subprocess.run(
            [self._program, "--kubeconfig", self.kubeconfig, *arguments],
            input=None if documents is None else yaml.safe_dump_all(documents),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def version(self) -> tuple[int, int]:
        """Return major and minor number of the program."""
        client = json.loads(self("version", "--client", "--output=json"))["clientVersion"]
        return int(client["major"]), int(client["minor"].rstrip("+"))

    def may(self, verb: str, resource: str, namespace: str) -> bool:
        """Return True if the account has a right; `resource` may be a subresource, such as pods/log."""
        kind, _, part = resource.partition("/")
        question = ["auth", "can-i", verb, kind, f"--subresource={part}", "--namespace", namespace]
        done = subprocess.run(
            [self._program, "--kubeconfig", self.kubeconfig, *question], capture_output=True, text=True
        )
        return done.stdout.strip() == "yes"


class Cluster:
    """The namespace of the pods, seen by an administrator."""

    def __init__(self, kubeconfig: str, config_dir: Path, image: str) -> None:
        self.image = image  # of the engine
        self.admin = Kubectl(kubeconfig)
        self.core: Any = client.CoreV1Api(config.new_client_from_config(kubeconfig))
        self.config_dir = config_dir
        self.worker = Kubectl(str(config_dir.parent / "airflow-worker.kubeconfig"))

    @property
    def hold_folder(self) -> Path:
        """Return the folder through which tests hold renders."""
        return self.config_dir.parent / "hold"

    def install(self, values: dict[str, str]) -> None:
        """Apply `config/kubernetes` with these settings, the secrets, Airflow's account, and GPUs on the node."""
        self.hold_folder.mkdir()
        self.hold_folder.chmod(0o777)  # the account of the pods writes in it
        folder = self.config_dir / "kubernetes"
        (folder / "settings.env").write_text("".join(f"{name}={values[name]}\n" for name in _SHARED))
        _change(folder / "snapshot.yaml", lambda docs: docs.pop())  # the job that downloads the weights
        # A server that enforces `restricted` would refuse the mounts and the network of the fitted pods.
        _change(folder / "namespace.yaml", lambda docs: docs[0]["metadata"].pop("labels"))
        for path in (self.config_dir / "pods").glob("*.yaml"):
            _change(path, lambda docs: _fit(docs[0], self.config_dir.parent, self.image))
        self.admin("apply", "--filename", "-", documents=_account_of_airflow())
        self.admin("apply", "--kustomize", str(folder))
        self.admin("apply", "--filename", "-", documents=[_secret(values)])
        self.core.patch_node(self.node, {"metadata": {"labels": {"nvidia.com/gpu.present": "true"}}})
        self.core.patch_node_status(self.node, {"status": {"capacity": {"nvidia.com/gpu": str(NUM_GPUS)}}})
        self._write_kubeconfig_of_worker()

    def uninstall(self) -> None:
        """Leave the cluster as it was found."""
        self.admin("delete", "--ignore-not-found", "--kustomize", str(self.config_dir / "kubernetes"))
        self.admin("delete", "--ignore-not-found", "namespace", WORKER["namespace"])
        self.core.patch_node(self.node, {"metadata": {"labels": {"nvidia.com/gpu.present": None}}})
        self.core.patch_node_status(self.node, {"status": {"capacity": {"nvidia.com/gpu": None}}})

    def pods(self, job_id: str, **labels: str) -> list[Any]:
        """Return the pods of a job that exist."""
        wanted = {"s2v/job-id": job_id} | labels
        selector = ",".join(f"{name}={value}" for name, value in wanted.items())
        return list(self.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items)

    def rendering(self, job_id: str, clip_index: int) -> Any | None:
        """Return the pod that renders a clip, once its container runs."""
        for pod in self.pods(job_id, **{"s2v/clip-index": str(clip_index)}):
            if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp:
                return pod
        return None

    def change_template(self, step: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
        """Change a pod template for the pods to come; `change` gets the spec and its container."""
        path = self.config_dir / "pods" / f"{step.replace('-', '_')}.yaml"
        _change(path, lambda docs: change(docs[0]["spec"], docs[0]["spec"]["containers"][0]))

    def patch(self) -> dict[str, Any]:
        """Return the patch for S2V_POD_PATCH_DIR that adapts the templates within an image of Airflow to this node."""
        folders = {
            "snapshot": {"hostPath": {"path": str(self.config_dir.parent / "snapshots" / "talker")}},
            "compile-cache": {"emptyDir": {}},
        }
        amounts = {"cpu": "500m", "memory": "3Gi", "nvidia.com/gpu": "1"}
        container = {
            "name": "base",
            "env": [{"name": "S2V_DEVICE", "value": "cpu"}, {"name": "OMP_NUM_THREADS", "value": "2"}],
            "resources": {"requests": amounts, "limits": amounts | {"cpu": "2"}},
        }
        volumes = [{"name": name, "persistentVolumeClaim": None} | folder for name, folder in folders.items()]
        return {"spec": {"hostNetwork": True, "volumes": volumes, "containers": [container]}}

    @property
    def node(self) -> str:
        """Return the name of the only node."""
        (node,) = self.core.list_node().items
        return str(node.metadata.name)

    def _write_kubeconfig_of_worker(self) -> None:
        """Write the configuration by which Airflow uses a token of the account that the chart gives its workers."""
        request = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=_TOKEN_SECONDS)
        )
        answer = self.core.create_namespaced_service_account_token(body=request, **WORKER)
        settings = yaml.safe_load(Path(self.admin.kubeconfig).read_text())
        for user in settings["users"]:
            user["user"] = {"token": answer.status.token}
        path = Path(self.worker.kubeconfig)
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(settings))


def _change(path: Path, change: Callable[[list[Any]], Any]) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    change(documents)
    path.write_text(yaml.safe_dump_all(documents))


def _fit(template: dict[str, Any], home: Path, image: str) -> None:
    """Adapt a template of `config/pods` to this node: image, network, folders for claims, less memory, no real GPU."""
    spec, container = template["spec"], template["spec"]["containers"][0]
    spec["hostNetwork"] = True
    spec["volumes"] = [volume for volume in spec["volumes"] if "persistentVolumeClaim" not in volume]
    spec["volumes"].append({"name": "snapshot", "hostPath": {"path": str(home / "snapshots" / "talker")}})
    if any(mount["name"] == "compile-cache" for mount in container["volumeMounts"]):
        spec["volumes"].append({"name": "compile-cache", "emptyDir": {}})
    spec["volumes"].append({"name": "hold", "hostPath": {"path": str(home / "hold")}})
    spec["volumes"].append({"name": "hold-module", "hostPath": {"path": str(HOLD_MODULE)}})
    container["volumeMounts"].append({"name": "hold", "mountPath": "/mnt/hold"})
    container["volumeMounts"].append({"name": "hold-module", "mountPath": "/mnt/hold-module", "readOnly": True})
    here = {"S2V_DEVICE": "cpu", "OMP_NUM_THREADS": "2"}
    for variable in container["env"]:
        if variable["name"] in here:
            variable["value"] = here[variable["name"]]
    container["env"].append({"name": "HOLD_FOLDER", "value": "/mnt/hold"})
    container["env"].append({"name": "PYTHONPATH", "value": "/mnt/hold-module"})
    container["image"] = image
    container["env"].append({"name": "OMP_WAIT_POLICY", "value": "passive"})  # the processors are shared
    template["metadata"].pop("annotations", None)  # further processes share what the pod has
    for amounts, processors in (("requests", "500m"), ("limits", "2")):
        container["resources"][amounts] = {"cpu": processors, "memory": "3Gi", "nvidia.com/gpu": "1"}


def _account_of_airflow() -> list[dict[str, Any]]:
    """Create the namespace and the account that the chart of Airflow makes."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": WORKER["namespace"]}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": WORKER},
    ]


def _secret(values: dict[str, str]) -> dict[str, Any]:
    """Create the secret of the pods, which an installation creates separately."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s2v-credentials", "namespace": NAMESPACE}}
    return secret | {"stringData": {name: values[name] for name in _SECRETS}}
