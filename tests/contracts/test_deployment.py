"""Check the files that are applied to a cluster: valid manifests, values that Airflow knows, consistent names."""

import json
import os
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
MODELS = {
    "ConfigMap": "V1ConfigMap", "Job": "V1Job", "Namespace": "V1Namespace", "NetworkPolicy": "V1NetworkPolicy",
    "PersistentVolumeClaim": "V1PersistentVolumeClaim", "PriorityClass": "V1PriorityClass", "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
}  # fmt: skip

# The keys of the chart that our values use, as they are found in its values, schema and templates. It refuses most
# others, and ignores some: look there before adding one here.
CHART = "1.22.0"
RESOURCES = {"requests": {"cpu": str, "memory": str}, "limits": {"memory": str}}
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
    "migrateDatabaseJob": {"args": list},
    "createUserJob": {"enabled": bool},
    "scheduler": {"resources": RESOURCES},
    "dagProcessor": {"enabled": bool, "resources": RESOURCES},
    "apiServer": {"resources": RESOURCES},
    "triggerer": {"replicas": int, "resources": RESOURCES, "persistence": {"enabled": bool}},
    "workers": {"kubernetes": {"resources": RESOURCES}},
    "statsd": {"enabled": bool},
    "config": dict,
}


def manifests() -> list[dict[str, Any]]:
    """Return the objects that `kubectl apply -k` would send, in its order."""
    files = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [doc for name in files for doc in yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8"))]


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
    """Nothing is lost on the way through the models of the API: no misspelt field, no wrong place."""
    client = ApiClient()
    model = client.deserialize(Answer(document), MODELS[document["kind"]])
    assert client.sanitize_for_serialization(model) == document


def test_every_file_is_applied() -> None:
    """A manifest that the kustomization does not list would be forgotten."""
    listed = set(yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))["resources"])
    assert {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"} == listed


def test_airflow_may_do_what_it_needs_and_no_more() -> None:
    """The rights that the pod operator uses, bound to the service accounts of the chart's release."""
    role, binding = manifest("Role"), manifest("RoleBinding")
    rights = {rule["resources"][0]: set(rule["verbs"]) for rule in role["rules"]}
    assert rights == {
        "pods": {"create", "get", "list", "delete", "patch"}, "pods/log": {"get"}, "events": {"list", "watch"},
    }  # fmt: skip
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert {(s["namespace"], s["name"]) for s in binding["subjects"]} == {
        ("airflow", "airflow-worker"), ("airflow", "airflow-triggerer"),
    }  # fmt: skip


def test_the_pods_of_the_steps_find_what_they_name() -> None:
    """Namespace, ConfigMap, volume claim and priority class of the pod templates are made here; secrets are named."""
    made = {(doc["kind"], doc["metadata"]["name"]) for doc in manifests()}
    namespace = manifest("Namespace")["metadata"]["name"]
    for path in sorted((ROOT / "config" / "pods").glob("*.yaml")):
        pod = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert pod["metadata"]["namespace"] == namespace
        assert ("PriorityClass", pod["spec"]["priorityClassName"]) in made
        for source in pod["spec"]["containers"][0]["envFrom"]:
            assert ("ConfigMap", source["configMapRef"]["name"]) in made if "configMapRef" in source else True
        claims = [
            v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v
        ]
        assert all(("PersistentVolumeClaim", claim) in made for claim in claims)


def test_the_snapshot_job_is_as_confined_as_its_namespace_demands() -> None:
    """It meets the `restricted` Pod Security Standard that the namespace enforces."""
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


def test_settings_are_known_and_hold_no_secret() -> None:
    """A name that the package does not know would stop every pod; a secret belongs into the Secret."""
    fields = Settings.model_fields
    for name in manifest("ConfigMap")["data"]:
        field = fields[name.removeprefix(PREFIX).lower()]
        assert "Secret" not in str(field.annotation), name
    Settings.model_validate({k.removeprefix(PREFIX).lower(): v for k, v in manifest("ConfigMap")["data"].items()})


def kinds(value: Any) -> Any:
    """The keys of a value and the types behind them; those of [config] are Airflow's (see below)."""
    if isinstance(value, dict) and "core" not in value:
        return {name: kinds(inner) for name, inner in value.items()}
    return type(value)


def test_the_chart_gets_what_it_knows(values: dict[str, Any]) -> None:
    """Each key is one of the chart's version that is installed, with its type; no account is made by the chart."""
    assert kinds(values) == CHART_KEYS
    assert values["createUserJob"]["enabled"] is False  # the chart's own account is admin, its password too
    for page in (AIRFLOW / "values.yaml", ROOT / "docs" / "how-to" / "first-clip-on-kubernetes.md"):
        commands = re.findall(r"helm upgrade .*", page.read_text(encoding="utf-8"))
        assert commands, page
        assert all(f" --version {CHART} " in command for command in commands), page


def test_the_names_of_an_installation_reach_every_file(tmp_path: Path) -> None:
    """The commands of the how-to, with a tag that looks like a number, which the chart would refuse as one."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    page = (ROOT / "docs" / "how-to" / "first-clip-on-kubernetes.md").read_text(encoding="utf-8")
    names = {"REGISTRY": "registry.example.com/video", "TAG": "1.0", "BUCKET": "films"}
    for command in re.findall(r"^sed -i .*", page, re.MULTILINE):
        subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env={"PATH": os.defpath} | names, check=True)
    texts = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.yaml")}
    changed = yaml.safe_load(texts["values.yaml"])
    assert changed["images"]["airflow"] == {"repository": "registry.example.com/video/s2v-airflow", "tag": "1.0"}
    assert changed["config"]["logging"]["remote_base_log_folder"].startswith("s3://films/")
    for name, image in (("render_clip", "engine"), ("encode_conditions", "engine"), ("snapshot", "steps")):
        assert f"image: registry.example.com/video/s2v-{image}:1.0\n" in texts[f"{name}.yaml"]
    assert "s2v-data" not in texts["settings.yaml"]


def test_the_chart_gets_what_airflow_knows(values: dict[str, Any]) -> None:
    """Sections and options of [config] exist, versions are the tested ones, and no value is a secret."""
    from airflow.configuration import conf

    for section, options in values["config"].items():
        known = conf.configuration_description[section]["options"]
        assert set(options) <= set(known), section
    pins = (ROOT / "config" / "constraints-py311.txt").read_text(encoding="utf-8")
    assert f"apache-airflow=={values['airflowVersion']}\n" in pins
    assert values["images"]["airflow"]["tag"] == __version__
    assert manifest("Job")["spec"]["template"]["spec"]["containers"][0]["image"].endswith(f":{__version__}")
    sources = yaml.safe_load(values["extraEnvFrom"])
    assert sources[0]["configMapRef"]["name"] == manifest("ConfigMap")["metadata"]["name"]
    script, folder = values["migrateDatabaseJob"]["args"][1:]
    assert (ROOT / script.removeprefix("/opt/airflow/src/")).is_file()
    assert (ROOT / folder.removeprefix("/opt/airflow/src/") / "pools.json").is_file()
    connections = json.loads((AIRFLOW / "connections.json").read_text(encoding="utf-8"))
    assert values["config"]["logging"]["remote_log_conn_id"] in connections
    assert not any(word in (AIRFLOW / "connections.json").read_text() for word in ("password", "secret"))
