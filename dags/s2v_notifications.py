"""# Notifications

Delivers webhook messages that could not be delivered at once: a step tries once after its work and does not wait for a
receiver. Runs every five minutes if webhooks are configured (`S2V_WEBHOOK_SECRET`), otherwise only when triggered.

The table `notifications` shows the state of each message. [Webhooks](how-to/webhooks.md) describes the messages, their
signature, and the addresses that are refused.
"""

from datetime import timedelta

from airflow.sdk import dag

from s2v_tasks.orchestration.command_operators import CommandOperator
from s2v_tasks.orchestration.notifiers import failure_notifiers
from s2v_tasks.schemas.steps import NOTIFICATIONS_DAG
from s2v_tasks.settings import load_settings


@dag(
    dag_id=NOTIFICATIONS_DAG,
    description="Deliver pending webhook messages.",
    doc_md=__doc__,
    schedule="*/5 * * * *" if load_settings().webhook_secret else None,
    catchup=False,
    on_failure_callback=failure_notifiers(),
    max_active_runs=1,
    tags=["s2v", "operations"],
)
def s2v_notifications() -> None:
    """Deliver the messages of the outbox."""
    CommandOperator(
        task_id="deliver", arguments=["deliver-notifications"], execution_timeout=timedelta(minutes=2), retries=0
    )


s2v_notifications()
