"""# Notifications

Sends again what did not reach a webhook at once: a step tries once, right after its work, and never waits for a
receiver. Every five minutes while webhooks are configured (`S2V_WEBHOOK_SECRET`), else only when triggered.

What became of each message stands in the table `notifications`; [webhooks](how-to/webhooks.md) tells what is sent, how
a receiver verifies it, and which addresses are refused.
"""

from datetime import timedelta

from airflow.sdk import dag

from s2v_tasks.orchestration.doors import CommandOperator
from s2v_tasks.orchestration.notifiers import failure_notifiers
from s2v_tasks.schemas.steps import NOTIFICATIONS_DAG
from s2v_tasks.settings import load_settings


@dag(
    dag_id=NOTIFICATIONS_DAG,
    description="Messages that did not reach their webhook at once.",
    doc_md=__doc__,
    schedule="*/5 * * * *" if load_settings().webhook_secret else None,
    catchup=False,
    on_failure_callback=failure_notifiers(),
    max_active_runs=1,
    tags=["video", "operations"],
)
def s2v_notifications() -> None:
    """One task: the sweep of the outbox."""
    CommandOperator(
        task_id="deliver", arguments=["deliver-notifications"], execution_timeout=timedelta(minutes=2), retries=0
    )


s2v_notifications()
