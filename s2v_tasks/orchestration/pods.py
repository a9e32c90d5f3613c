"""Operator and trigger that run a step in its own pod, from the templates of `pod_templates`.

A template has all properties of a pod that an installation may change: namespace, image, volumes, security, resources.
The operator adds the command, the labels, the deadline, the number of GPUs, and the resources of further processes.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLaunchTimeoutException
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import TaskSuccessEvent, TriggerEvent
from kubernetes.client import ApiException, V1EnvVar
from kubernetes.utils.quantity import format_quantity, parse_quantity
from urllib3.exceptions import HTTPError

from s2v_tasks import __version__
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.orchestration.clip_sensor import DEFERRED_POLL_SECONDS
from s2v_tasks.orchestration.pod_failures import judge, not_answered, not_created
from s2v_tasks.orchestration.pod_templates import BASE_CONTAINER, load_pod_template, namespace_of
from s2v_tasks.orchestration.retry_policy import working_time
from s2v_tasks.orchestration.step_commands import in_dag_test, job_id_of, num_processes, step_arguments
from s2v_tasks.orchestration.step_operators import CloseJobOperator, failed_try
from s2v_tasks.schemas.steps import HEAVY_STEPS, Step
from s2v_tasks.settings import load_settings

# One request to the cluster per pod. The GPU is idle from the end of a clip to the poll that sees it.
POLL_SECONDS = 3
LOG_SECONDS = 30
# Added to Airflow's timeout for the deadline of the pod itself, which ends a pod that Airflow has lost.
DEADLINE_MARGIN = timedelta(minutes=10)
_GPU_SUFFIX = "/gpu"  # nvidia.com/gpu, amd.com/gpu
# Annotations of a template: additions to requests and limits for each further process, with their unit.
_PER_OFFLOADING_PROCESS = "s2v/memory-per-offloading-process"
_PER_FURTHER_PROCESS = {"cpu": ("s2v/cpu-per-further-process", "m"), "memory": ("s2v/memory-per-further-process", "Mi")}


class StepPodOperator(KubernetesPodOperator):  # type: ignore[misc]
    """Runs `s2v <step>` for the job of this DAG run in a pod.

    It waits in the triggerer, which also ends the task after a success, and finds its pod again if a worker or the
    triggerer is lost. It fails with the reason of the step, else with the reason of the cluster (`pod_failures`).
    """

    template_fields = (*KubernetesPodOperator.template_fields, "clip")

    def __init__(self, *, step: Step, clip: Any = None, **kwargs: Any) -> None:
        settings = load_settings()
        load_pod_template(step)  # a wrong file is an import error of the DAG
        super().__init__(
            execution_timeout=_time_of_task(step),
            base_container_name=BASE_CONTAINER,
            # Waiting for a GPU and for a clip takes hours, so it must not hold a worker.
            deferrable=True,
            poll_interval=POLL_SECONDS,
            logging_interval=LOG_SECONDS,
            # A lost worker or triggerer leaves the pod running; the next try finds it by the identity kept in Airflow.
            durable=True,
            # The wait for a free GPU is much longer than the default of two minutes. Then the image is pulled.
            schedule_timeout_seconds=settings.pod_schedule_seconds,
            startup_timeout_seconds=settings.pod_startup_seconds,
            # Log, container state and events are in the task's log by then.
            on_finish_action="delete_pod",
            # A cancelled clip must free its GPU; it saves its state within the grace period of the template.
            on_kill_action="delete_pod",
            log_events_on_failure=True,
            # If a process could not write its reason, the end of its log is used.
            termination_message_policy="FallbackToLogsOnError",
            # The specification names the secrets and has the whole environment, which must not be logged.
            log_pod_spec_on_failure=False,
            # A step returns artifacts only; the sidecar for XCom would need an image and exec rights.
            do_xcom_push=False,
            random_name_suffix=True,
            name=step.command,
            labels={
                "app.kubernetes.io/name": "s2v",
                "app.kubernetes.io/component": step.command,
                "app.kubernetes.io/version": __version__,
                "app.kubernetes.io/managed-by": "airflow",
            },
            **kwargs,
        )
        self.step = step
        self.clip = clip

    def pre_execute(self, context: Any) -> None:
        """Set the timeouts for the number of clips of this task, which is known just before it runs."""
        self.execution_timeout = _time_of_task(self.step, self.clip)
        self.active_deadline_seconds = int((self.execution_timeout + DEADLINE_MARGIN).total_seconds())

    def execute(self, context: Context) -> None:
        """Start the pod, or find the pod of an earlier try, and wait for it in the triggerer."""
        self.arguments = step_arguments(self.step, context, self.clip)
        self.labels |= {"s2v/job-id": make_safe_label_value(job_id_of(context))} | _label_of_run(context)
        if self.clip is not None:
            self.labels |= {"s2v/clip-index": str(self.clip["clip_index"])}
        super().execute(context)

    def defer(self, *, trigger: Any, **kwargs: Any) -> None:
        """Wait in the triggerer; `dag.test()`, which resumes after each trigger, uses that of the provider."""
        super().defer(trigger=trigger if in_dag_test() else StepPodTrigger(**trigger.serialize()[1]), **kwargs)

    def build_pod_request_obj(self, context: Any = None, **kwargs: Any) -> Any:
        """Return the pod of the template, scaled to the number of processes of the step, with the digest of its image.

        The digest is known if the template names the image by digest.
        """
        # Set here instead of in the constructor, so that no patch is rendered by Jinja or stored with the DAG.
        self.pod_template_dict = load_pod_template(self.step)
        pod = super().build_pod_request_obj(context, **kwargs)
        scale_resources(pod, num_processes(self.step), offloads=load_settings().offload == "blocks")
        container = pod.spec.containers[0]
        _, _, digest = (container.image or "").partition("@")
        if digest:
            container.env = [*(container.env or []), V1EnvVar(name="S2V_IMAGE_DIGEST", value=digest)]
        return pod

    def get_or_create_pod(self, pod_request_obj: Any, context: Context) -> Any:
        """Return the pod of this try; if the cluster refuses it, the task fails with its message."""
        try:
            return super().get_or_create_pod(pod_request_obj, context)
        except Exception as error:
            raise failed_try(self, context, not_created(error)) from error

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> None:
        """Continue after the wait: the pod has failed or timed out, or the triggerer could not delete it."""
        try:
            super().trigger_reentry(context, event)
        except (ApiException, HTTPError) as error:
            raise failed_try(self, context, not_answered(error)) from error
        except AirflowException as error:
            raise failed_try(self, context, judge(self.pod, self.base_container_name, str(error))) from error


class CloseJobOfPodsOperator(CloseJobOperator):
    """Closes a job whose steps ran in pods, and deletes the remaining pods of this run.

    Pods remain only if Airflow failed at the moment of a deletion.
    """

    def execute(self, context: Context) -> Any:
        """Close the job; AirflowFailException unless it succeeded."""
        try:
            return super().execute(context)
        finally:
            self._delete_pods(context)

    def _delete_pods(self, context: Any) -> None:
        client = KubernetesHook().core_v1_client
        own = {"dag_id": make_safe_label_value(self.dag_id)} | _label_of_run(context)
        selector = ",".join(f"{name}={value}" for name, value in own.items())
        for namespace in {namespace_of(step) for step in HEAVY_STEPS}:
            for pod in client.list_namespaced_pod(namespace, label_selector=selector).items:
                if pod.metadata.deletion_timestamp:  # a second request may delay the end of the pod by a minute
                    continue
                self.log.warning("Deleting pod %s, which this run left behind.", pod.metadata.name)
                with suppress(ApiException):  # it is already gone
                    client.delete_namespaced_pod(pod.metadata.name, namespace)


def scale_resources(pod: Any, processes: int, *, offloads: bool = False) -> None:
    """Set the resources of `pod`, whose template states those of one process on one GPU.

    If the template requests GPUs, the pod gets one for each process. The annotations `s2v/cpu-per-further-process` and
    `s2v/memory-per-further-process` are added for each further process. If blocks are offloaded,
    `s2v/memory-per-offloading-process` is added for each process. Without annotations CPU and memory do not change.

    Raises ConfigurationError for an annotation that is not a quantity.
    """
    resources, annotations = pod.spec.containers[0].resources, pod.metadata.annotations or {}
    for amounts in (resources.requests, resources.limits):
        for name in [name for name in amounts if name.endswith(_GPU_SUFFIX)]:
            amounts[name] = str(processes)
        for name, (annotation, unit) in _PER_FURTHER_PROCESS.items():
            if processes > 1 and name in amounts and annotation in annotations:
                more = (processes - 1) * _quantity(annotation, annotations[annotation])
                amounts[name] = format_quantity(parse_quantity(amounts[name]) + more, unit)
        if offloads and "memory" in amounts and _PER_OFFLOADING_PROCESS in annotations:
            more = processes * _quantity(_PER_OFFLOADING_PROCESS, annotations[_PER_OFFLOADING_PROCESS])
            amounts["memory"] = format_quantity(parse_quantity(amounts["memory"]) + more, "Mi")


def _quantity(annotation: str, value: str) -> Decimal:
    try:
        return Decimal(parse_quantity(value))
    except ValueError as error:
        raise ConfigurationError(
            f"The annotation {annotation} of a pod template is {value!r}; expected a quantity of Kubernetes, "
            'for example "4" for cpu or 16Gi for memory.'
        ) from error


def _label_of_run(context: Any) -> dict[str, str]:
    """Return the label that only pods of this run have.

    People choose run ids, and the label `run_id` of the provider can be equal for different ones.
    """
    return {"s2v/run-digest": hashlib.sha256(context["run_id"].encode()).hexdigest()[:40]}


def _time_of_task(step: Step, clip: Any = None) -> timedelta:
    """Return the timeout of a task: time of its work, and of the waits for a node and an image."""
    settings = load_settings()
    return working_time(step, clip) + timedelta(seconds=settings.pod_schedule_seconds + settings.pod_startup_seconds)


# A pod that still runs this long after its deletion time is lost: a live kubelet ends it earlier.
_KUBELET_PATIENCE = timedelta(minutes=1)
_SECOND_OF_LOG = 1.0  # the asynchronous reader of logs leaves out the lines of the current second


class StepPodTrigger(KubernetesPodTrigger):  # type: ignore[misc]
    """Trigger that fires no event within seconds of its deferral, and ends the wait for pods of dead nodes.

    It ends the task itself if the pod has succeeded. A worker would be started only to read the rest of the log and to
    delete the pod, and the next clip waits for the end of the task.

    If the image of a pod is missing, it fails at once. A trigger that fires so soon can fail its task while a worker
    resumes it (apache/airflow#66374): a retry is used, and the fault is not counted.

    When a node dies, Kubernetes deletes its pods, but only the kubelet of the node can report their end. They stay
    "Running" until the node is removed, and a clip would wait until its timeout.
    """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return import path and arguments, from which a triggerer makes the trigger again."""
        return f"{type(self).__module__}.{type(self).__qualname__}", super().serialize()[1]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the events of the base class, none within seconds of the deferral."""
        earliest = time.monotonic() + DEFERRED_POLL_SECONDS
        async for event in super().run():
            await asyncio.sleep(max(0.0, earliest - time.monotonic()))
            is_done = event.payload["status"] == "success" and await self._finish(event.payload.get("last_log_time"))
            yield TaskSuccessEvent() if is_done else event

    async def _finish(self, log_time: Any | None) -> bool:
        """Write the log from `log_time` on and delete the pod; False if a worker must do it."""
        await asyncio.sleep(_SECOND_OF_LOG)
        try:
            pod = await self._get_pod()
            await self.pod_manager.fetch_container_logs_before_current_sec(pod, self.base_container_name, log_time)
            await self.hook.delete_pod(self.pod_name, self.pod_namespace)
        except Exception as error:  # noqa: BLE001 - whatever fails here, a worker does it or reports it
            self.log.warning("A worker ends the task: pod %s is not finished here (%s).", self.pod_name, error)
            return False
        return True

    async def _get_pod(self) -> Any:
        """Return the pod; PodLaunchTimeoutException, which ends the wait, if its node is lost."""
        pod = await super()._get_pod()
        ends = pod.metadata.deletion_timestamp
        if ends is not None and datetime.now(UTC) > ends + _KUBELET_PATIENCE:
            raise PodLaunchTimeoutException(
                f"Pod {self.pod_name} should have ended at {ends:%H:%M:%S} UTC: its node does not answer any more."
            )
        return pod
