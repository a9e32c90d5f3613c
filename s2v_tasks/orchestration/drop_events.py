"""When the drop folder is swept: every minute, and at once when its queue, if there is one, has a message."""

from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, AssetWatcher, CronTriggerTimetable

from s2v_tasks.settings import load_settings

_EVERY_MINUTE = "* * * * *"
_POLL_SECONDS = 5


def drop_schedule() -> Any:
    """The schedule of this installation. An event is a nudge; what lies in the folder is the truth."""
    settings = load_settings()
    if settings.drop_queue_url is None:
        return CronTriggerTimetable(_EVERY_MINUTE, timezone="UTC")

    # The extra `queue`; without a queue nobody needs to install it.
    from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger

    trigger = MessageQueueTrigger(
        scheme="sqs", sqs_queue=settings.drop_queue_url, waiter_delay=_POLL_SECONDS, region_name=settings.s3_region
    )
    drops = Asset("s2v_drops", watchers=[AssetWatcher(name="s2v_drop_queue", trigger=trigger)])
    return AssetOrTimeSchedule(timetable=CronTriggerTimetable(_EVERY_MINUTE, timezone="UTC"), assets=[drops])
