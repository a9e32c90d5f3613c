"""Airflow in pods, as its Helm chart installs it with the values of `config/airflow/values.yaml`.

The chart needs a registry, a network between pods and a DNS, which the node of the tests lacks. So its objects are
written here as the chart renders them with these values: accounts and rights, the migration job and the containers
that wait for it, which secrets each pod gets, settings, volumes, limits, the configuration of Airflow. All pods use the
network of the node. So there are no services, and one triggerer. The exporter of the metrics, the probes and the
containers that delete old logs are left out.
"""

import base64
import configparser
import io
import json
import secrets
from typing import Any
from urllib.parse import urlsplit

import yaml

from s2v_tasks.embedded.process import free_ports
from tests.kubernetes.cluster import REPOSITORY, WORKER, Cluster
from tests.kubernetes.serving import Airflow

RELEASE = WORKER["namespace"]  # the release and its namespace
_HOME = "/opt/airflow"
_TEMPLATES = f"{_HOME}/pod_templates"
_JOB = f"{RELEASE}-run-airflow-migrations"
_COMPONENTS = {
    "api-server": "apiServer",
    "scheduler": "scheduler",
    "dag-processor": "dagProcessor",
    "triggerer": "triggerer",
}  # and the section of each in the values
_SECRETS = (
    ("AIRFLOW__CORE__FERNET_KEY", "airflow-keys", "fernet-key"),
    ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "airflow-metadata", "connection"),
    ("AIRFLOW_CONN_AIRFLOW_DB", "airflow-metadata", "connection"),
    ("AIRFLOW__API__SECRET_KEY", "airflow-keys", "api-secret-key"),
)  # of all pods: variable, secret, key
_WITH_JWT_SECRET = ("api-server", "scheduler")  # a worker gets a token with its task
_WITHOUT_LOGS = ("api-server", "migrate-database-job")
_RIGHTS: dict[str, tuple[tuple[str, ...], dict[str, list[str]]]] = {
    "pod-launcher": (
        ("scheduler", "worker", "triggerer"),
        {
            "pods": ["create", "list", "get", "patch", "watch", "delete"],
            "pods/log": ["get"],
            "pods/exec": ["create", "get"],
            "events": ["list", "watch"],
        },
    ),
    "pod-log-reader": (("api-server",), {"pods": ["list", "get", "watch"], "pods/log": ["get", "list"]}),
}
_SMALL = {"cpu": "50m", "memory": "256Mi"}  # the node has two processors


class Release:
    """Airflow in the namespace `airflow` of a cluster; `install` creates it, `admin` is its REST API."""

    def __init__(self, cluster: Cluster, image: str, settings: dict[str, str], database_url: str) -> None:
        self._cluster, self._image, self._settings, self._database_url = cluster, image, settings, database_url
        self._values = yaml.safe_load((REPOSITORY / "config/airflow/values.yaml").read_text())
        (self._port,) = free_ports(1)
        self.admin = Airflow(f"http://127.0.0.1:{self._port}")

    def install(self) -> None:
        """Create everything, wait for the API server, and create an administrator."""
        kubectl = self._cluster.admin
        components = [self._deployment(name) for name in _COMPONENTS]
        chart = [*_accounts(), self._configuration(), *components, self._job()]
        kubectl("apply", "--filename", "-", documents=[*self._inputs(), *chart])
        kubectl("wait", "--namespace", RELEASE, "--for=condition=complete", "--timeout=600s", f"job/{_JOB}")
        for name in _COMPONENTS:
            kubectl("rollout", "status", "--namespace", RELEASE, "--timeout=600s", f"deployment/{RELEASE}-{name}")
        password = secrets.token_hex(12)
        account = {"role": "Admin", "username": "admin", "firstname": "A", "lastname": "Dmin", "email": "a@example.com"}
        options = [word for name, value in account.items() for word in (f"--{name}", value)]
        pod = f"deploy/{RELEASE}-scheduler"
        kubectl(
            "exec", "--namespace", RELEASE, pod, "--", "airflow", "users", "create", *options, "--password", password
        )
        self.admin.wait(lambda: self._has_dags(password), 300)

    def _has_dags(self, password: str) -> bool:
        """Return True once the API server answers and the DAGs are known; the drop folder is paused then."""
        try:
            self.admin.log_in("admin", password)
            self.admin.call("/dags/s2v_drop_folder", {"is_paused": True}, "PATCH")  # it runs every minute
            self.admin.call("/dags/speech_to_video")
        except OSError:
            return False
        return True

    def uninstall(self) -> None:
        """End all pods of Airflow."""
        self._cluster.admin("delete", "--namespace", RELEASE, "--all", "deployments,jobs,pods")

    @property
    def num_pods(self) -> int:
        """Return the number of pods that always run."""
        return len(_COMPONENTS)

    def log_of_scheduler(self) -> str:
        """Return the log of the scheduler that runs."""
        return self._cluster.admin("logs", "--namespace", RELEASE, f"deployment/{RELEASE}-scheduler")

    def workers(self, task_id: str) -> list[str]:
        """Return the names of the pods in which the executor runs a task now."""
        pods = self._cluster.core.list_namespaced_pod(RELEASE, label_selector="component=worker").items
        mine = [pod for pod in pods if pod.metadata.annotations["task_id"] == task_id]
        return [
            pod.metadata.name for pod in mine if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp
        ]

    def _inputs(self) -> list[dict[str, Any]]:
        """Return what the guide creates by hand: settings, patches of the pods, secrets."""
        login, password = (self._settings[f"S2V_S3_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
        extra = {"endpoint_url": self._settings["S2V_S3_ENDPOINT_URL"], "region_name": "us-east-1"}
        logs = {"conn_type": "aws", "login": login, "password": password, "extra": extra}
        credentials = {
            "S2V_DATABASE_URL": self._settings["S2V_DATABASE_URL"],
            "S2V_S3_ACCESS_KEY_ID": login,
            "S2V_S3_SECRET_ACCESS_KEY": password,
            "AIRFLOW_CONN_S2V_LOGS": json.dumps(logs),
        }
        keys = {
            "fernet-key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "api-secret-key": secrets.token_hex(16),
            "jwt-secret": secrets.token_hex(32),
        }
        settings = {name: self._settings[name] for name in ("S2V_S3_ENDPOINT_URL", "S2V_DATA_URI", "S2V_OUTPUT_URI")}
        settings |= {
            "S2V_EXECUTION": "kubernetes",
            "S2V_MODEL": self._settings["S2V_MODEL"],
            "S2V_GPU": self._settings["S2V_GPU"],
            "S2V_ENGINE_IMAGE": self._cluster.image,
            "S2V_GPU_POOL_SLOTS": "2",
            "S2V_POD_PATCH_DIR": f"{_HOME}/pods",
        }
        return [
            _object("Secret", "s2v-credentials", stringData=credentials),
            _object("Secret", "airflow-metadata", stringData={"connection": self._database_url}),
            _object("Secret", "airflow-keys", stringData=keys),
            _object("ConfigMap", "s2v-settings", data=settings),
            _object("ConfigMap", "s2v-pods", data={"every_pod.yaml": yaml.safe_dump(self._cluster.patch())}),
        ]

    def _configuration(self) -> dict[str, Any]:
        """Return the configuration of Airflow and the template of the worker pods, as one ConfigMap."""
        repository, _, tag = self._image.rpartition(":")
        sections: dict[str, dict[str, Any]] = {
            "core": {
                "auth_manager": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
                "dags_folder": f"{_HOME}/dags",
                "executor": self._values["executor"],
                "execution_api_server_url": f"{self.admin.url}/execution/",
            },
            "api": {"host": "127.0.0.1", "port": self._port},
            "fab": {"enable_proxy_fix": "True"},
            "kubernetes_executor": {
                "namespace": RELEASE,
                "multi_namespace_mode": "False",
                "pod_template_file": f"{_TEMPLATES}/pod_template_file.yaml",
                "worker_container_repository": repository,
                "worker_container_tag": tag,
            },
        }
        for section, entries in self._values["config"].items():
            sections.setdefault(section, {}).update(entries)
        sections["logging"]["remote_base_log_folder"] = f"{self._settings['S2V_DATA_URI']}/airflow-logs"
        sections["metrics"]["statsd_on"] = "False"  # the exporter is an image of its own
        parser, text = configparser.ConfigParser(interpolation=None), io.StringIO()
        parser.read_dict(sections)
        parser.write(text)
        data = {"airflow.cfg": text.getvalue(), "pod_template_file.yaml": yaml.safe_dump(self._worker())}
        return _object("ConfigMap", "airflow-config", data=data)

    def _worker(self) -> dict[str, Any]:
        """Return the template of the worker pods, with the image of the chart, which the executor replaces."""
        pod = self._pod("worker", self._values["workers"]["kubernetes"])
        pod |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": 600}
        pod["containers"][0] |= {"name": "base", "image": f"apache/airflow:{self._values['defaultAirflowTag']}"}
        metadata = {"name": "placeholder-name", "labels": {"component": "worker"}}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}

    def _job(self) -> dict[str, Any]:
        section = self._values["migrateDatabaseJob"]
        pod = self._pod("migrate-database-job", section, args=section["args"])
        template = {"spec": pod | {"restartPolicy": "OnFailure"}}
        return _object("Job", _JOB, "batch/v1", spec={"template": template})

    def _deployment(self, component: str) -> dict[str, Any]:
        """Return a component of Airflow, which begins when the database is migrated."""
        section = self._values[_COMPONENTS[component]]
        pod = self._pod(component, section, args=["bash", "-c", f"exec airflow {component}"])
        wait = ["airflow", "db", "check-migrations", "--migration-wait-timeout=60"]
        pod["initContainers"] = self._pod("wait-for-airflow-migrations", section, args=wait)["containers"]
        labels = {"component": component}
        spec = {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        }
        return _object("Deployment", f"{RELEASE}-{component}", "apps/v1", spec=spec)

    def _pod(self, name: str, section: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Return a pod of Airflow with one container; `section` of the values has its limits."""
        server = urlsplit(self._cluster.core.api_client.configuration.host)
        environment = [_from_secret(*reference) for reference in _SECRETS]
        if name in _WITH_JWT_SECRET:
            environment.append(_from_secret("AIRFLOW__API_AUTH__JWT_SECRET", "airflow-keys", "jwt-secret"))
        environment += [
            {"name": "KUBERNETES_SERVICE_HOST", "value": server.hostname},  # its service has no route here
            {"name": "KUBERNETES_SERVICE_PORT", "value": str(server.port)},
        ]
        mounts = [{"name": "config", "mountPath": f"{_HOME}/airflow.cfg", "subPath": "airflow.cfg"}]
        if name == "scheduler":
            file = "pod_template_file.yaml"
            mounts.append({"name": "config", "mountPath": f"{_TEMPLATES}/{file}", "subPath": file})
        if name not in _WITHOUT_LOGS:
            mounts.append({"name": "logs", "mountPath": f"{_HOME}/logs"})
        container = {
            "name": name,
            "image": self._image,
            "env": environment,
            "envFrom": yaml.safe_load(self._values["extraEnvFrom"]),
            "resources": {"limits": section["resources"]["limits"], "requests": _SMALL},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [*mounts, *self._values["volumeMounts"]],
        }
        own = [{"name": "config", "configMap": {"name": "airflow-config"}}, {"name": "logs", "emptyDir": {}}]
        return {
            "serviceAccountName": f"{RELEASE}-{name}",
            "hostNetwork": True,
            "securityContext": {"runAsUser": 50000, "fsGroup": 0},
            "containers": [container | fields],
            "volumes": [*own, *self._values["volumes"]],
        }


def _object(kind: str, name: str, version: str = "v1", **content: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": RELEASE}, **content}


def _from_secret(variable: str, secret: str, key: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _accounts() -> list[dict[str, Any]]:
    """Return the accounts of the chart and their rights in this namespace; `config/kubernetes` has those in `s2v`."""
    accounts = [*_COMPONENTS, "worker", "migrate-database-job"]
    group = "rbac.authorization.k8s.io"
    objects = [_object("ServiceAccount", f"{RELEASE}-{name}") for name in accounts]
    for role, (names, rights) in _RIGHTS.items():
        rules = [{"apiGroups": [""], "resources": [kind], "verbs": verbs} for kind, verbs in rights.items()]
        subjects = [{"kind": "ServiceAccount", "name": f"{RELEASE}-{name}", "namespace": RELEASE} for name in names]
        reference = {"apiGroup": group, "kind": "Role", "name": f"{RELEASE}-{role}-role"}
        objects.append(_object("Role", reference["name"], f"{group}/v1", rules=rules))
        binding = f"{RELEASE}-{role}-rolebinding"
        objects.append(_object("RoleBinding", binding, f"{group}/v1", roleRef=reference, subjects=subjects))
    return objects
