"""Check the pods that the operator renders: commands, resources, security and labels."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from s2v_tasks import __version__
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.orchestration.pods import StepPodOperator
from s2v_tasks.orchestration.step_operators import step_task
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP, step_of_command
from s2v_tasks.settings import load_settings
from tests.dags import rendered_pods
from tests.dags.rendered_pods import CLIP, rendered

pods_of_four_processes = rendered_pods.pods_of_four_processes  # a fixture of these tests

# What the `restricted` Pod Security Standard allows as volumes.
RESTRICTED_VOLUMES = {"config_map", "csi", "downward_api", "empty_dir", "ephemeral", "persistent_volume_claim",
                      "projected", "secret"}  # fmt: skip


@pytest.fixture(params=[RENDER_CLIP, ENCODE_CONDITIONS], ids=lambda step: step.name)
def pod(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    return rendered(request.param, monkeypatch)


def test_a_clip_is_rendered_by_one_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting gives the number of processes and of GPUs."""
    container = rendered(RENDER_CLIP, monkeypatch).spec.containers[0]
    assert container.command == ["python"]
    assert container.args[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    assert container.args[7:12] == ["-m", "s2v_tasks.cli", "render-clip", "--job-id", "my-job"]
    assert container.args[12:] == ["--clip-index", "3", "--count", "2"]
    assert container.resources.limits["nvidia.com/gpu"] == "4"


def test_conditions_are_encoded_by_one_process_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod of encode_conditions has one GPU, whatever number a clip has."""
    container = rendered(ENCODE_CONDITIONS, monkeypatch).spec.containers[0]
    assert container.args == ["-m", "s2v_tasks.cli", "encode-conditions", "--job-id", "my-job"]
    assert container.resources.limits["nvidia.com/gpu"] == "1"


def test_a_pod_passes_the_restricted_pod_security_standard(pod: Any) -> None:
    """The pod is non-root, without escalation or capabilities, with the seccomp profile and without host volumes."""
    spec, container = pod.spec, pod.spec.containers[0]
    assert not any([spec.host_network, spec.host_pid, spec.host_ipc])
    assert spec.security_context.run_as_non_root is True
    assert spec.security_context.run_as_user >= 1000
    assert spec.security_context.seccomp_profile.type == "RuntimeDefault"
    security = container.security_context
    assert security.allow_privilege_escalation is False
    assert (security.capabilities.drop, security.capabilities.add) == (["ALL"], None)
    assert not security.privileged
    for volume in spec.volumes:
        assert {name for name, value in volume.to_dict().items() if value and name != "name"} <= RESTRICTED_VOLUMES


def test_a_pod_can_write_only_where_it_should(pod: Any) -> None:
    """Root and snapshot are read-only; scratch and shared memory are bounded; each cache has its own folder."""
    container = pod.spec.containers[0]
    assert container.security_context.read_only_root_filesystem is True
    mounts = {mount.mount_path: mount for mount in container.volume_mounts}
    volumes = {volume.name: volume for volume in pod.spec.volumes}
    assert mounts["/snapshot"].read_only is True
    assert volumes["snapshot"].persistent_volume_claim.read_only is True
    writable = {path: volumes[mount.name] for path, mount in mounts.items() if not mount.read_only}
    cache = writable.pop("/compile-cache", None)
    assert all(volume.empty_dir.size_limit for volume in writable.values())
    environment = {variable.name: variable.value for variable in container.env}
    assert {environment[name] for name in ("HOME", "TMPDIR", "S2V_WORK_DIR", "S2V_HOME")} == {"/scratch"}
    assert environment.get("S2V_COMPILE_CACHE") == ("/compile-cache" if cache else None)


def test_a_pod_computes_on_its_gpu_with_the_threads_that_it_requests(pod: Any) -> None:
    """A pod with a GPU never computes on the CPU instead; a process has as many threads as a further one has CPUs."""
    environment = {variable.name: variable.value for variable in pod.spec.containers[0].env}
    assert environment["S2V_DEVICE"] == "cuda"
    each = (pod.metadata.annotations or {}).get(
        "s2v/cpu-per-further-process", pod.spec.containers[0].resources.limits["cpu"]
    )
    assert environment["OMP_NUM_THREADS"] == each


def test_pods_of_clips_share_the_compile_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compile cache is a volume claim that outlives the pod."""
    spec = rendered(RENDER_CLIP, monkeypatch).spec
    claims = {v.name: v.persistent_volume_claim.claim_name for v in spec.volumes if v.persistent_volume_claim}
    assert claims == {"snapshot": "s2v-snapshot", "compile-cache": "s2v-compile-cache"}


def test_a_clip_has_shared_memory_and_time_to_save_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory is a memory volume; the grace period is longer than the step needs to save its state."""
    from s2v_tasks.orchestration.step_commands import TERMINATION_GRACE_SECONDS

    spec = rendered(RENDER_CLIP, monkeypatch).spec
    mounts = {mount.name: mount.mount_path for mount in spec.containers[0].volume_mounts}
    assert mounts["shm"].endswith("/shm")
    assert next(volume.empty_dir.medium for volume in spec.volumes if volume.name == "shm") == "Memory"
    assert spec.termination_grace_period_seconds > TERMINATION_GRACE_SECONDS


def test_a_pod_gets_what_it_asks_for_on_a_node_for_it(pod: Any) -> None:
    """Requests equal limits for memory, CPU, disk and GPUs; the pod has its priority and goes to nodes with GPUs."""
    resources = pod.spec.containers[0].resources
    assert resources.requests == resources.limits
    assert set(resources.limits) == {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}
    assert pod.spec.node_selector == {"nvidia.com/gpu.present": "true"}
    assert [toleration.key for toleration in pod.spec.tolerations] == ["nvidia.com/gpu"]
    assert pod.spec.priority_class_name == "s2v-render"


def test_a_pod_receives_signals_from_its_start(pod: Any) -> None:
    """The pod shares its process namespace, because process 1 ignores SIGTERM until it has a handler."""
    assert pod.spec.share_process_namespace is True


def test_a_pod_holds_no_secret_and_no_token(pod: Any) -> None:
    """Secrets are references; the pod has no variable of Airflow and no token of a service account."""
    container = pod.spec.containers[0]
    assert [source.secret_ref.name for source in container.env_from if source.secret_ref] == ["s2v-credentials"]
    assert not [variable.name for variable in container.env if "KEY" in variable.name or "URL" in variable.name]
    assert "hush" not in str(pod.to_dict())
    assert pod.spec.automount_service_account_token is False
    assert pod.spec.enable_service_links is False


def test_a_pod_knows_its_node(pod: Any) -> None:
    """The node is in the environment, for the records of attempts."""
    (variable,) = (variable for variable in pod.spec.containers[0].env if variable.name == "S2V_NODE")
    assert variable.value_from.field_ref.field_path == "spec.nodeName"


def test_a_pod_can_be_found_and_ends_by_itself(pod: Any) -> None:
    """Labels name the job; the deadline of the pod is later than Airflow's; Kubernetes does not restart it."""
    labels = pod.metadata.labels
    assert (labels["app.kubernetes.io/name"], labels["s2v/job-id"], labels["run_id"]) == ("s2v", "my-job", "manual__1")
    assert (labels["app.kubernetes.io/version"], labels["app.kubernetes.io/managed-by"]) == (__version__, "airflow")
    step = step_of_command(labels["app.kubernetes.io/component"])
    assert labels.get("s2v/clip-index") == ("3" if step == RENDER_CLIP else None)
    assert pod.metadata.name.startswith(f"{step.command}-")
    assert pod.metadata.namespace == "s2v"
    task = step_task(step, clip=CLIP if step == RENDER_CLIP else None)
    task.pre_execute({})
    assert isinstance(task.execution_timeout, timedelta)
    assert pod.spec.active_deadline_seconds == task.execution_timeout.total_seconds() + 600
    assert pod.spec.restart_policy == "Never"


def test_waiting_for_a_node_takes_nothing_from_the_time_for_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit of a task is the sum of the waits for node and image, outages, and the time of each clip."""
    monkeypatch.setenv("S2V_POD_SCHEDULE_SECONDS", str(24 * 3600))
    monkeypatch.setenv("S2V_POD_STARTUP_SECONDS", "3600")
    load_settings.cache_clear()
    conditions, render = step_task(ENCODE_CONDITIONS), step_task(RENDER_CLIP, clip=CLIP)
    render.pre_execute({})
    waits = timedelta(seconds=2 * load_settings().retry_seconds)
    assert conditions.execution_timeout == timedelta(hours=25 + 1) + waits
    assert render.execution_timeout == timedelta(hours=25 + 2 * 6) + 2 * waits


def test_the_reason_of_a_step_is_the_termination_message(pod: Any) -> None:
    """The error file of the step is the termination message of its container, or else the end of the log."""
    environment = {variable.name: variable.value for variable in pod.spec.containers[0].env}
    assert environment["STEP_ERROR_FILE"] == (pod.spec.containers[0].termination_message_path or "/dev/termination-log")
    assert pod.spec.containers[0].termination_message_policy == "FallbackToLogsOnError"


def test_the_template_is_that_of_the_configured_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates come from S2V_CONFIG_DIR; a missing one is named."""
    template = yaml.safe_load((Path(__file__).parents[2] / "config/pods/render_clip.yaml").read_text())
    template["metadata"]["namespace"] = "video"
    template["spec"]["containers"][0]["image"] = "registry.example.com/s2v-engine:2"
    (tmp_path / "pods").mkdir()
    (tmp_path / "presets.yaml").touch()
    (tmp_path / "pods/render_clip.yaml").write_text(yaml.safe_dump(template))
    monkeypatch.setenv("S2V_CONFIG_DIR", str(tmp_path))
    load_settings.cache_clear()
    pod = rendered(RENDER_CLIP, monkeypatch)
    assert pod.metadata.namespace == "video"
    assert pod.spec.containers[0].image == "registry.example.com/s2v-engine:2"
    assert "S2V_IMAGE_DIGEST" not in {variable.name for variable in pod.spec.containers[0].env}


def test_a_pod_knows_the_digest_of_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step gets the digest of the image in its template, with or without other variables, for its manifests."""
    template = yaml.safe_load((Path(__file__).parents[2] / "config/pods/render_clip.yaml").read_text())
    container = template["spec"]["containers"][0]
    container["image"] = f"registry.example.com/s2v-engine@sha256:{64 * 'a'}"
    (tmp_path / "pods").mkdir()
    (tmp_path / "presets.yaml").touch()
    monkeypatch.setenv("S2V_CONFIG_DIR", str(tmp_path))
    load_settings.cache_clear()
    for variables in (container["env"], None):
        container["env"] = variables
        (tmp_path / "pods/render_clip.yaml").write_text(yaml.safe_dump(template))
        env = rendered(RENDER_CLIP, monkeypatch).spec.containers[0].env
        environment = {variable.name: variable.value for variable in env}
        assert environment.pop("S2V_IMAGE_DIGEST") == f"sha256:{64 * 'a'}"
        assert environment.get("S2V_SNAPSHOT_PATH") == ("/snapshot" if variables else None)
    with pytest.raises(ConfigurationError, match=r"encode_conditions\.yaml is missing"):
        step_task(ENCODE_CONDITIONS)


def test_options_of_the_pod_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator reattaches, defers, deletes its pod, has separate time limits, and logs no environment."""
    monkeypatch.setenv("S2V_POD_SCHEDULE_SECONDS", "7200")
    monkeypatch.setenv("S2V_POD_STARTUP_SECONDS", "300")
    load_settings.cache_clear()
    task: Any = step_task(ENCODE_CONDITIONS)
    assert "clip" in task.template_fields  # of a mapped task it is known only when it runs
    assert {"env_vars", "labels"} <= set(task.template_fields)
    assert (task.schedule_timeout_seconds, task.startup_timeout_seconds) == (7200, 300)
    assert (task.deferrable, task.reattach_on_restart, task.random_name_suffix) == (True, True, True)
    assert (task.on_finish_action.value, task.on_kill_action.value) == ("delete_pod", "delete_pod")
    assert (task.log_events_on_failure, task.log_pod_spec_on_failure, task.do_xcom_push) == (True, False, False)
    assert (task.poll_interval, task.logging_interval) == (3, 30)
    named: Any = step_task(ENCODE_CONDITIONS, task_id="clip.render")
    assert named.name == "encode-conditions"  # a pod is named after its step, whatever the task is called


def test_a_dry_run_prints_the_pod_without_a_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Airflow's dry run of a task asks no cluster."""
    monkeypatch.setattr(StepPodOperator, "hook", SimpleNamespace())
    step_task(RENDER_CLIP, clip=CLIP).dry_run()
    assert "  namespace: s2v\n" in capsys.readouterr().out
