"""Check that settings and mounted files change the pod templates, and that a wrong file is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.orchestration.pod_templates import load_pod_template, merge, namespace_of
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP
from s2v_tasks.settings import load_settings

TEMPLATES = Path(__file__).parents[2] / "config" / "pods"
BASE: dict[str, Any] = {"name": "base"}
IMAGE = "registry.example.com:5000/video/s2v-engine"


@pytest.fixture(autouse=True)
def _kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2V_EXECUTION", "kubernetes")
    load_settings.cache_clear()


@pytest.fixture
def patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a file as Kubernetes mounts one of a ConfigMap: a link to a folder whose name starts with two dots."""
    folder = tmp_path / "mounted"
    (folder / "..2026").mkdir(parents=True)
    (folder / "..data").symlink_to("..2026")
    monkeypatch.setenv("S2V_POD_PATCH_DIR", str(folder))
    load_settings.cache_clear()

    def write(content: Any, name: str = "every_pod.yaml") -> Path:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (folder / "..2026" / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data", name))
        return folder / name

    return write


def template() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((TEMPLATES / "render_clip.yaml").read_text())
    return loaded


@pytest.mark.usefixtures("patch")
def test_an_empty_folder_changes_nothing() -> None:
    """Without files in the folder, the pods have the templates of the image."""
    assert load_pod_template(RENDER_CLIP) == template()


@pytest.mark.parametrize("suffix", [":0.2.0", f"@sha256:{64 * 'a'}", f":0.2.0@sha256:{64 * 'a'}"])
def test_one_setting_names_the_image_of_all_pods(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """S2V_ENGINE_IMAGE replaces the image in all templates, by tag or digest, and changes nothing else."""
    monkeypatch.setenv("S2V_ENGINE_IMAGE", IMAGE + suffix)
    load_settings.cache_clear()
    for step in (ENCODE_CONDITIONS, RENDER_CLIP):
        assert load_pod_template(step)["spec"]["containers"][0]["image"] == IMAGE + suffix
    expected = template()
    expected["spec"]["containers"][0]["image"] = IMAGE + suffix
    assert load_pod_template(RENDER_CLIP) == expected


@pytest.mark.parametrize("image", [IMAGE, "s2v-engine", "s2v-engine: 1", f"{IMAGE}@sha256:aa", "https://a.b/c:1"])
def test_an_image_without_tag_is_refused(monkeypatch: pytest.MonkeyPatch, image: str) -> None:
    """An image without tag or digest, and a text that is no image name, are configuration errors."""
    monkeypatch.setenv("S2V_ENGINE_IMAGE", image)
    load_settings.cache_clear()
    with pytest.raises(
        ConfigurationError,
        match=r"S2V_ENGINE_IMAGE: .*is not an image with a tag or a digest; expected registry/name:tag",
    ):
        load_settings()


def test_a_file_for_every_pod_and_one_for_a_step(patch: Callable[..., Path]) -> None:
    """The file of a step is merged after the file for every pod, and only into the template of that step."""
    patch({"metadata": {"namespace": "videos"}, "spec": {"priorityClassName": "common", "nodeSelector": {"a": "1"}}})
    patch({"spec": {"priorityClassName": "renders"}}, "render_clip.yaml")
    render, conditions = load_pod_template(RENDER_CLIP), load_pod_template(ENCODE_CONDITIONS)
    assert render["spec"]["priorityClassName"] == "renders"
    assert conditions["spec"]["priorityClassName"] == "common"
    assert namespace_of(RENDER_CLIP) == namespace_of(ENCODE_CONDITIONS) == "videos"
    assert render["spec"]["nodeSelector"] == {"nvidia.com/gpu.present": "true", "a": "1"}


def test_the_next_task_reads_a_changed_file(patch: Callable[..., Path]) -> None:
    """A changed file is used by the next task of the same process."""
    for name in ("first", "second"):
        patch({"spec": {"priorityClassName": name}})
        assert load_pod_template(RENDER_CLIP)["spec"]["priorityClassName"] == name


def test_lists_are_merged_as_kubernetes_merges_them(patch: Callable[..., Path]) -> None:
    """Containers, variables, volumes and mounts are merged by name; tolerations are replaced; null removes an entry."""
    patch({
        "spec": {
            "nodeSelector": None,
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "containers": [
                {
                    "name": "base",
                    "env": [{"name": "S2V_HOME", "value": "/x"}, {"name": "NCCL_DEBUG", "value": "INFO"}],
                    "resources": {"limits": {"nvidia.com/gpu": None, "amd.com/gpu": 1}},
                    "volumeMounts": [{"name": "snapshot", "mountPath": "/snapshot", "subPath": "14b"}],
                }
            ],
            "volumes": [{"name": "snapshot", "persistentVolumeClaim": {"claimName": "weights"}}],
        }
    })
    spec, before = load_pod_template(RENDER_CLIP)["spec"], template()["spec"]
    container = spec["containers"][0]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert "nodeSelector" not in spec
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert (values["S2V_HOME"], values["NCCL_DEBUG"], values["S2V_WORK_DIR"]) == ("/x", "INFO", "/scratch")
    assert len(container["env"]) == len(before["containers"][0]["env"]) + 1
    assert container["resources"]["limits"].keys() == {"cpu", "memory", "ephemeral-storage", "amd.com/gpu"}
    assert [volume["name"] for volume in spec["volumes"]] == [volume["name"] for volume in before["volumes"]]
    mounts = [mount for mount in container["volumeMounts"] if mount["name"] == "snapshot"]
    assert mounts == [{"name": "snapshot", "mountPath": "/snapshot", "readOnly": True, "subPath": "14b"}]
    claims = [v["persistentVolumeClaim"] for v in spec["volumes"] if v["name"] == "snapshot"]
    assert claims == [{"claimName": "weights", "readOnly": True}]
    for untouched in ("securityContext", "automountServiceAccountToken", "shareProcessNamespace"):
        assert spec[untouched] == before[untouched]
    assert container["securityContext"] == before["containers"][0]["securityContext"]


def test_a_file_of_comments_alone_changes_nothing(patch: Callable[..., Path]) -> None:
    """A file in which everything is commented out is like no file."""
    before = load_pod_template(RENDER_CLIP)
    patch("# spec: {nodeSelector: {gpu: a100}}\n")
    assert load_pod_template(RENDER_CLIP) == before


def test_a_secret_variable_may_come_from_another_secret(patch: Callable[..., Path]) -> None:
    """A reference to a Secret is no value, and is accepted for the variables that hold secrets."""
    url = {"name": "S2V_DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "ours", "key": "url"}}}
    patch({"spec": {"containers": [BASE | {"env": [url]}]}})
    assert url in load_pod_template(RENDER_CLIP)["spec"]["containers"][0]["env"]


def test_items_that_are_no_mappings_are_kept() -> None:
    """A list with a merge key keeps items that have no keys, and adds the new ones."""
    assert merge({"env": ["odd", {"name": "A"}]}, {"env": [{"name": "B"}]}) == {
        "env": ["odd", {"name": "A"}, {"name": "B"}]
    }


def test_a_merge_changes_neither_of_its_parts() -> None:
    """Merging changes neither the template nor the patch."""
    target, part = {"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": None}, {"name": "B"}]}
    assert merge(target, part) == {"env": [{"name": "A"}, {"name": "B"}]}
    assert target == {"env": [{"name": "A", "value": "1"}]}
    assert part == {"env": [{"name": "A", "value": None}, {"name": "B"}]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("spec: [", "is not valid YAML"),
        ("nodeSelector", "holds 'nodeSelector'; expected fields of a Pod, for example spec"),
        ({"nodeSelector": {"a": "b"}}, "has nodeSelector; expected a field of a Kubernetes Pod. Check its name"),
        ({"spec": {"nodeSelectors": {"a": "b"}}}, "has spec.nodeSelectors; expected a field of a Kubernetes Pod"),
        ({"spec": {"nodeSelectors": {}}}, "has spec.nodeSelectors; expected a field of a Kubernetes Pod"),
        ({"spec": {"nodeSelector": {"gpu": True}}}, "has spec.nodeSelector.gpu: True; expected text. Put the value in"),
        ({"spec": {"tolerations": {"key": "gpu"}}}, "has spec.tolerations.key; expected a field"),
        ({"spec": {"tolerations": [{"keys": "gpu"}]}}, r"has spec.tolerations\[0\].keys; expected a field"),
        ({"spec": {"terminationGracePeriodSeconds": "long"}}, "is not a valid Pod: "),
        ({"spec": {"containers": [None]}}, "expected"),
        ({"spec": {"containers": [{"image": "a:1"}]}}, "is not a valid Pod: "),
        ({"spec": {"containers": [BASE | {"image": None}]}}, r"containers \['base'\]; expected one called base, with"),
        ({"spec": None}, r"containers \[\]; expected one called base, with an image"),
        ({"metadata": {"namespace": None}}, "has namespace None: expected metadata.namespace, where pods run"),
        (
            {"spec": {"containers": [BASE | {"env": [{"name": "S2V_DATABASE_URL", "value": "postgresql://u:p@h"}]}]}},
            "has the value of S2V_DATABASE_URL; expected valueFrom.secretKeyRef.*s2v-credentials",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(patch: Callable[..., Path], content: Any, words: str) -> None:
    """A misspelt field is a configuration error that names the file and the field."""
    path = patch(content)
    with pytest.raises(ConfigurationError, match=words) as refused:
        load_pod_template(RENDER_CLIP)
    assert str(refused.value).startswith(str(path))
    assert "u:p" not in str(refused.value)


def test_a_file_of_no_step_is_refused(patch: Callable[..., Path]) -> None:
    """A file whose name is no step is a configuration error."""
    patch({}, "render-clip.yaml")
    with pytest.raises(ConfigurationError, match=r"render-clip.yaml: expected one of .*render_clip.yaml. Rename"):
        load_pod_template(RENDER_CLIP)


def test_a_missing_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured folder that does not exist is a configuration error."""
    monkeypatch.setenv("S2V_POD_PATCH_DIR", "/nowhere")
    load_settings.cache_clear()
    with pytest.raises(ConfigurationError, match=r"S2V_POD_PATCH_DIR=/nowhere: no such folder.*Mount it"):
        load_pod_template(RENDER_CLIP)


def test_a_template_itself_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of S2V_CONFIG_DIR without a namespace is a configuration error."""
    (tmp_path / "pods").mkdir()
    (tmp_path / "presets.yaml").touch()
    monkeypatch.setenv("S2V_CONFIG_DIR", str(tmp_path))
    load_settings.cache_clear()
    own = template()
    del own["metadata"]["namespace"]
    (tmp_path / "pods/render_clip.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(ConfigurationError, match=r"render_clip\.yaml has namespace None: expected metadata\.namespace"):
        namespace_of(RENDER_CLIP)
