"""Check the files that are applied to a cluster: valid manifests, values that Airflow knows, consistent names."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient

from s2v_tasks import __version__
from s2v_tasks.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "config" / "kubernetes"
AIRFLOW = ROOT / "config" / "airflow"
EXAMPLE = ROOT / "config" / "clusters" / "example"
MODELS = {
    "ConfigMap": "V1ConfigMap", "Job": "V1Job", "Namespace": "V1Namespace", "NetworkPolicy": "V1NetworkPolicy",
    "PersistentVolumeClaim": "V1PersistentVolumeClaim", "PriorityClass": "V1PriorityClass", "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
}  # fmt: skip

# The keys of the chart that our values use, as they are found in its values, schema and templates. It refuses most
# others, and ignores some: look there before adding one here.
CHART = "1.22.0"
RESOURCES = {"requests": {"cpu": str, "memory": str}, "limits": {"memory": str}}
GROOMER: dict[str, Any] = {"resources": RESOURCES}
CHART_KEYS: dict[str, Any] = {
    "airflowVersion": str,
    "defaultAirflowTag": str,
    "images": {"airflow": {"repository": str, "tag": str}},
    "executor": str,
    "redis": {"enabled": bool},
    "postgresql": {"enabled": bool},
    "data": {"metadataSecretName": str},
    "fernetKeySecretName": str,
    "apiSecretKeySecretName": str,
    "jwtSecretName": str,
    "extraEnvFrom": str,
    "volumes": list,
    "volumeMounts": list,
    "migrateDatabaseJob": {
        "args": list,
        "useHelmHooks": bool,
        "jobAnnotations": {"helm.sh/hook": str, "helm.sh/hook-delete-policy": str},
        "ttlSecondsAfterFinished": int,
        "resources": RESOURCES,
    },
    "createUserJob": {"enabled": bool},
    "scheduler": {"resources": RESOURCES, "startupProbe": {"failureThreshold": int}, "logGroomerSidecar": GROOMER},
    "dagProcessor": {"enabled": bool, "resources": RESOURCES, "logGroomerSidecar": GROOMER},
    "apiServer": {"resources": RESOURCES, "startupProbe": {"failureThreshold": int}},
    "triggerer": {
        "replicas": int,
        "resources": RESOURCES,
        "logGroomerSidecar": GROOMER,
        "persistence": {"enabled": bool},
    },
    "workers": {"kubernetes": {"resources": RESOURCES}},
    "statsd": {"enabled": bool, "resources": RESOURCES},
    "config": dict,
}


def manifests() -> list[dict[str, Any]]:
    """Return the objects that `kubectl apply -k` would send, without the ConfigMaps that it makes of settings.env."""
    files = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [doc for name in files for doc in yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8"))]


def settings() -> dict[str, str]:
    """Return the settings of all pods."""
    lines = (KUBERNETES / "settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def with_kustomize(folder: Path) -> list[dict[str, Any]]:
    """Return the objects that `kubectl apply -k` sends for a folder."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl, of version 1.30 or later")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [doc for doc in manifests() if doc["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((AIRFLOW / "values.yaml").read_text(encoding="utf-8"))
    return data


class Answer:
    """An answer as the Kubernetes client reads it from the network."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.data = json.dumps(document)


@pytest.mark.parametrize("document", manifests(), ids=lambda doc: f"{doc['kind']}-{doc['metadata']['name']}")
def test_kubernetes_knows_every_field(document: dict[str, Any]) -> None:
    """Every manifest passes through the API models without loss: no field is misspelt or misplaced."""
    client = ApiClient()
    model = client.deserialize(Answer(document), MODELS[document["kind"]])
    assert client.sanitize_for_serialization(model) == document


def test_every_file_is_applied() -> None:
    """The kustomization lists every manifest of the folder."""
    listed = set(yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))["resources"])
    assert {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"} == listed


def test_airflow_may_do_what_it_needs_and_no_more() -> None:
    """The role has exactly the rights of the pod operator and is bound to the service accounts of the chart."""
    role, binding = manifest("Role"), manifest("RoleBinding")
    rights = {rule["resources"][0]: set(rule["verbs"]) for rule in role["rules"]}
    assert rights == {
        "pods": {"create", "get", "list", "delete", "patch"}, "pods/log": {"get"}, "events": {"list", "watch"},
    }  # fmt: skip
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert {(s["namespace"], s["name"]) for s in binding["subjects"]} == {
        ("airflow", "airflow-worker"), ("airflow", "airflow-triggerer"),
    }  # fmt: skip


def test_objects_that_the_pods_name_exist() -> None:
    """The manifests create namespace, ConfigMap, volume claim and priority class of the pods, and name the secrets."""
    made = {(doc["kind"], doc["metadata"]["name"]) for doc in manifests()}
    namespace = manifest("Namespace")["metadata"]["name"]
    for path in sorted((ROOT / "config" / "pods").glob("*.yaml")):
        pod = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert pod["metadata"]["namespace"] == namespace
        assert ("PriorityClass", pod["spec"]["priorityClassName"]) in made
        generated = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))[
            "configMapGenerator"
        ]
        maps = {(generator["namespace"], generator["name"]) for generator in generated}
        for source in pod["spec"]["containers"][0]["envFrom"]:
            assert (namespace, source["configMapRef"]["name"]) in maps if "configMapRef" in source else True
        claims = [
            v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v
        ]
        assert all(("PersistentVolumeClaim", claim) in made for claim in claims)


def test_the_snapshot_job_meets_the_pod_security_standard() -> None:
    """The job meets the `restricted` Pod Security Standard that its namespace enforces."""
    assert manifest("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = manifest("Job")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert set().union(*pod["volumes"]) <= {"name", "persistentVolumeClaim", "emptyDir"}
    assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("of_example", [False, True], ids=["settings.env", "example"])
def test_settings_are_known_and_hold_no_secret(of_example: bool) -> None:
    """The package knows every name in settings.env, and none of them is a secret."""
    fields = Settings.model_fields
    found = settings()
    if of_example:
        found = yaml.safe_load((EXAMPLE / "settings.yaml").read_text(encoding="utf-8"))["data"]
    for name in found:
        field = fields[name.removeprefix(PREFIX).lower()]
        assert "Secret" not in str(field.annotation), name
    Settings.model_validate({k.removeprefix(PREFIX).lower(): v for k, v in found.items()})


def kinds(value: Any) -> Any:
    """Return the keys of a value and the types behind them; the keys of [config] are Airflow's and are left out."""
    if isinstance(value, dict) and "core" not in value:
        return {name: kinds(inner) for name, inner in value.items()}
    return type(value)


def test_the_chart_knows_every_value(values: dict[str, Any]) -> None:
    """Each key exists in the installed version of the chart with the same type; the chart creates no account."""
    assert kinds(values) == CHART_KEYS
    assert values["createUserJob"]["enabled"] is False  # the chart's own account is admin, its password too
    for page in (AIRFLOW / "values.yaml", ROOT / "docs" / "how-to" / "first-clip-on-kubernetes.md"):
        commands = re.findall(r"helm upgrade .*", page.read_text(encoding="utf-8"))
        assert commands, page
        assert all(f" --version {CHART} " in command for command in commands), page


def test_an_upgrade_migrates_before_it_changes_pods(values: dict[str, Any]) -> None:
    """Helm runs the migration job before an upgrade, but after an installation, because the job needs its objects.

    The chart adds its own hooks, which win, unless `useHelmHooks` is false.
    """
    job = values["migrateDatabaseJob"]
    assert job["useHelmHooks"] is False
    assert set(job["jobAnnotations"]["helm.sh/hook"].split(",")) == {"post-install", "pre-upgrade"}


def test_a_cluster_is_configured_by_its_overlay_alone() -> None:
    """The example overlay changes settings in both namespaces, storage classes, the image of the job, and the pods."""
    made = with_kustomize(EXAMPLE)
    names = [(doc["kind"], doc["metadata"].get("namespace"), doc["metadata"]["name"]) for doc in made]
    assert len(set(names)) == len(names)
    found = dict(zip(names, made, strict=True))
    for namespace in ("s2v", "airflow"):
        data = found["ConfigMap", namespace, "s2v-settings"]["data"]
        assert data.keys() >= settings().keys()
        assert data["S2V_ENGINE_IMAGE"] == "registry.example.com/video/s2v-engine:0.1.0"
        assert data["S2V_DATA_URI"] == "s3://films"
        assert data["S2V_EXECUTION"] == "kubernetes"
    claims = [doc for doc in made if doc["kind"] == "PersistentVolumeClaim"]
    assert [claim["spec"]["storageClassName"] for claim in claims] == ["shared-files"] * 2
    job = found["Job", "s2v", "s2v-fetch-snapshot"]["spec"]["template"]["spec"]
    assert job["containers"][0]["image"] == "registry.example.com/video/s2v-steps:0.1.0"
    assert found["ConfigMap", "airflow", "s2v-pods"]["data"] == {
        path.name: path.read_text(encoding="utf-8") for path in (EXAMPLE / "pods").glob("*.yaml")
    }


def test_the_overlay_changes_the_pods_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches mounted by the chart change nodes and memory of the pods and keep all other fields."""
    from s2v_tasks.orchestration.pod_templates import load_pod_template
    from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP
    from s2v_tasks.settings import load_settings

    monkeypatch.setenv("S2V_ENGINE_IMAGE", "registry.example.com/video/s2v-engine:0.1.0")
    load_settings.cache_clear()
    before = load_pod_template(RENDER_CLIP)
    monkeypatch.setenv("S2V_POD_PATCH_DIR", str(EXAMPLE / "pods"))
    load_settings.cache_clear()
    conditions, render = load_pod_template(ENCODE_CONDITIONS), load_pod_template(RENDER_CLIP)
    for pod in (conditions, render):
        assert pod["spec"]["nodeSelector"] == {"example.com/gpu-pool": "h100"}
        assert [toleration["key"] for toleration in pod["spec"]["tolerations"]] == ["example.com/gpu-pool"]
        assert pod["spec"]["containers"][0]["image"] == "registry.example.com/video/s2v-engine:0.1.0"
    limits = render["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "12", "memory": "96Gi", "ephemeral-storage": "20Gi", "nvidia.com/gpu": "1"}
    assert conditions["spec"]["containers"][0]["resources"]["limits"]["memory"] == "32Gi"
    changed = {"nodeSelector", "tolerations", "containers"}
    assert {name for name in before["spec"] if render["spec"].get(name) != before["spec"][name]} == changed


def test_the_chart_mounts_the_patches_of_the_pods(values: dict[str, Any]) -> None:
    """The optional ConfigMap of the overlay is mounted at the folder that the setting names."""
    (mount,), (volume,) = values["volumeMounts"], values["volumes"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], settings()["S2V_POD_PATCH_DIR"])
    example = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text(encoding="utf-8"))
    (generator,) = example["configMapGenerator"]
    assert volume["configMap"] == {"name": generator["name"], "optional": True}
    own = yaml.safe_load((EXAMPLE / "values.yaml").read_text(encoding="utf-8"))
    assert kinds(own["images"]) == CHART_KEYS["images"]
    assert own["config"]["logging"].keys() <= values["config"]["logging"].keys()


UNDOCUMENTED = "num_stuck_in_queued_retries"  # an option of Airflow's scheduler


def test_airflow_knows_every_option_of_the_chart(values: dict[str, Any]) -> None:
    """Sections and options of [config] exist, versions are the tested ones, and no value is a secret."""
    from airflow.configuration import conf

    for section, options in values["config"].items():
        known = conf.configuration_description[section]["options"]
        assert set(options) - {UNDOCUMENTED} <= set(known), section
    scheduler = importlib.util.find_spec("airflow.jobs.scheduler_job_runner")
    assert scheduler is not None
    assert scheduler.origin is not None
    assert f'key="{UNDOCUMENTED}"' in Path(scheduler.origin).read_text(encoding="utf-8")
    pins = (ROOT / "config" / "constraints-py311.txt").read_text(encoding="utf-8")
    assert f"apache-airflow=={values['airflowVersion']}\n" in pins
    assert values["images"]["airflow"]["tag"] == __version__
    assert manifest("Job")["spec"]["template"]["spec"]["containers"][0]["image"].endswith(f":{__version__}")
    sources = yaml.safe_load(values["extraEnvFrom"])
    assert sources[0]["configMapRef"]["name"] == "s2v-settings"
    script, folder = values["migrateDatabaseJob"]["args"][1:]
    assert (ROOT / script.removeprefix("/opt/airflow/src/")).is_file()
    assert (ROOT / folder.removeprefix("/opt/airflow/src/") / "connections.json").is_file()
    connections = json.loads((AIRFLOW / "connections.json").read_text(encoding="utf-8"))
    assert values["config"]["logging"]["remote_log_conn_id"] in connections
    assert not any(word in (AIRFLOW / "connections.json").read_text() for word in ("password", "secret"))
