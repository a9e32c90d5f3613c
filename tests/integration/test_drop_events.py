"""Check that S3 events in the queue trigger a sweep of the drop folder."""

import asyncio
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from s2v_tasks.orchestration.command_operators import drop_schedule
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.s3 import ObjectStore


@pytest.fixture
def queue_url(s3_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A queue that gets an event for each object in the bucket of the test."""
    access = {
        "endpoint_url": s3_settings.s3_endpoint_url,
        "region_name": "us-east-1",
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test-secret",
    }
    sqs, s3 = boto3.client("sqs", **access), boto3.client("s3", **access)
    bucket = ObjectStore.from_settings(s3_settings).bucket
    url = sqs.create_queue(QueueName=bucket)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events = {"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]}
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=events)
    sqs.purge_queue(QueueUrl=url)  # of the test event that S3 sends
    variables = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret"}
    for name, value in (variables | {"AWS_ENDPOINT_URL_SQS": str(s3_settings.s3_endpoint_url)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("S2V_DROP_QUEUE_URL", url)
    load_settings.cache_clear()
    yield url
    for client in (sqs, s3):
        client.close()


async def _first_event(trigger: Any) -> Any:
    async for event in trigger.run():
        return event
    return None


def test_a_dropped_object_wakes_the_trigger(queue_url: str, s3_settings: Settings) -> None:
    """The trigger fires with the message of a dropped object; the sweep reads the listing and not the message."""
    (asset,) = drop_schedule().asset_condition.objects
    (watcher,) = asset.watchers
    ObjectStore.from_settings(s3_settings).put_bytes("drop/incoming/anna/request.json", b"{}", "application/json")
    event = asyncio.run(asyncio.wait_for(_first_event(watcher.trigger), 60))
    assert "request.json" in str(event.payload)
