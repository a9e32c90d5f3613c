"""Check the processors, memory and GPUs of pods."""

from pathlib import Path

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.orchestration.pods import scale_resources
from s2v_tasks.schemas.steps import RENDER_CLIP
from s2v_tasks.settings import load_settings
from tests.dags import rendered_pods
from tests.dags.rendered_pods import rendered

pods_of_four_processes = rendered_pods.pods_of_four_processes  # a fixture of these tests


@pytest.mark.parametrize(
    ("processes", "cpu", "memory_gib"), [(1, 8, 64), (2, 12, 80), (8, 36, 176)], ids=["1", "2", "8"]
)
def test_a_clip_has_processors_and_memory_for_each_process(
    monkeypatch: pytest.MonkeyPatch, processes: int, cpu: int, memory_gib: int
) -> None:
    """CPU and memory, requests and limits, grow with the number of processes; the weights are counted once."""
    monkeypatch.setenv("S2V_NPROC_PER_NODE", str(processes))
    load_settings.cache_clear()
    resources = rendered(RENDER_CLIP, monkeypatch).spec.containers[0].resources
    for amounts in (resources.requests, resources.limits):
        assert parse_quantity(amounts["cpu"]) == cpu
        assert parse_quantity(amounts["memory"]) == memory_gib * 2**30
        assert amounts["nvidia.com/gpu"] == str(processes)
        assert amounts["ephemeral-storage"] == "20Gi"


def test_offloaded_blocks_have_host_memory_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With S2V_OFFLOAD=blocks the pod asks for 28 GiB more for each of its processes, where it asks for memory."""
    monkeypatch.setenv("S2V_NPROC_PER_NODE", "2")
    monkeypatch.setenv("S2V_OFFLOAD", "blocks")
    load_settings.cache_clear()
    pod = rendered(RENDER_CLIP, monkeypatch)
    resources = pod.spec.containers[0].resources
    assert {parse_quantity(amounts["memory"]) for amounts in (resources.requests, resources.limits)} == {136 * 2**30}
    del resources.limits["memory"]
    scale_resources(pod, 2, offloads=True)
    assert "memory" not in resources.limits
    resources.requests["memory"] = "70000M"
    scale_resources(pod, 1)
    assert resources.requests["memory"] == "70000M"  # an amount is written anew only to add something


def test_a_template_without_annotations_keeps_its_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without annotations, only the number of GPUs changes; an annotation that is no quantity is refused."""
    monkeypatch.setenv("S2V_OFFLOAD", "blocks")
    template = yaml.safe_load((Path(__file__).parents[2] / "config/pods/render_clip.yaml").read_text())
    (tmp_path / "pods").mkdir()
    (tmp_path / "presets.yaml").touch()
    monkeypatch.setenv("S2V_CONFIG_DIR", str(tmp_path))
    load_settings.cache_clear()
    for annotations in (None, {}, {"s2v/memory-per-further-process": "plenty"}):
        template["metadata"]["annotations"] = annotations
        (tmp_path / "pods/render_clip.yaml").write_text(yaml.safe_dump(template))
        if annotations:
            with pytest.raises(ConfigurationError, match=r"memory-per-further-process.*'plenty'; expected a quantity"):
                rendered(RENDER_CLIP, monkeypatch)
        else:
            limits = rendered(RENDER_CLIP, monkeypatch).spec.containers[0].resources.limits
            assert (limits["cpu"], limits["memory"], limits["nvidia.com/gpu"]) == ("8", "64Gi", "4")
