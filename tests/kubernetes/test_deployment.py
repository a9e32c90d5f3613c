"""Check that the API server of a cluster accepts the manifests of `config/`."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.cluster import NAMESPACE, REPOSITORY, Cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600, func_only=True)]
CONFIG = REPOSITORY / "config"


def documents(*paths: Path) -> list[dict[str, Any]]:
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


def test_the_api_server_accepts_every_manifest(cluster: Cluster) -> None:
    """`kubectl apply -k config/kubernetes` creates every object without a change."""
    said = cluster.admin("apply", "--kustomize", str(CONFIG / "kubernetes"), "--dry-run=server", "--output=name")
    folder = CONFIG / "kubernetes"
    files = [path for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"]
    expected = {(doc["kind"].lower(), doc["metadata"]["name"]) for doc in documents(*files)}
    expected.add(("configmap", "s2v-settings"))
    accepted = {(kind.partition(".")[0], name) for kind, _, name in (line.partition("/") for line in said.split())}
    assert accepted == expected


def test_the_api_server_accepts_the_example_of_a_cluster(cluster: Cluster) -> None:
    """`kubectl apply -k config/clusters/example` succeeds, with the patches of the pods for Airflow."""
    # The storage class of a claim cannot be changed. Nothing uses the claims on this node.
    cluster.admin("delete", "persistentvolumeclaims", "--all", "--namespace", NAMESPACE)
    folder = str(CONFIG / "clusters" / "example")
    said = cluster.admin("apply", "--kustomize", folder, "--dry-run=server", "--output=name")
    assert "configmap/s2v-pods" in said.split()
    assert said.split().count("configmap/s2v-settings") == 2


@pytest.mark.parametrize("template", sorted((CONFIG / "pods").glob("*.yaml")), ids=lambda path: path.stem)
def test_airflow_may_create_the_pods_of_the_templates(cluster: Cluster, template: Path) -> None:
    """The account of Airflow's workers may create the pods of a cluster with GPUs."""
    (pod,) = documents(template)
    pod["metadata"]["name"] = "as-it-is"
    said = cluster.worker("create", "--dry-run=server", "--output=yaml", "--filename", "-", documents=[pod])
    spec = yaml.safe_load(said)["spec"]
    assert spec["priority"] == 1000
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_airflow_has_the_rights_of_its_role_alone(cluster: Cluster) -> None:
    """Airflow may use pods, their logs and events in one namespace, and neither secrets nor commands in pods."""
    for verb, resource in (("create", "pods"), ("delete", "pods"), ("get", "pods/log"), ("list", "events")):
        assert cluster.worker.may(verb, resource, NAMESPACE)
        assert not cluster.worker.may(verb, resource, "default")
    for verb, resource in (("get", "secrets"), ("list", "secrets"), ("create", "pods/exec"), ("get", "configmaps")):
        assert not cluster.worker.may(verb, resource, NAMESPACE)
