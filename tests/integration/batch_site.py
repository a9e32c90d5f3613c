"""A bucket and a database for batches."""

import json
from typing import Any

import pytest
import sqlalchemy as sa

from s2v_tasks.ingestion.batches import Batches
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.catalogue import load_catalogue
from s2v_tasks.settings import Settings, config_dir
from s2v_tasks.storage.s3 import ObjectStore


class Site:
    """The batches of a test with their store and metadata; `put` writes the manifest."""

    def __init__(self, settings: Settings, store: ObjectStore, engine: Any) -> None:
        metadata = MetadataStore(engine)
        self.store, self.jobs, self.queue = store, metadata.jobs, metadata.queue
        self.batches = Batches(store, metadata.batches, load_catalogue(config_dir(settings)))
        self.uri = store.uri("batch/monday.jsonl")
        for name in ("anna.png", "speech.wav"):
            store.put_bytes(f"batch/{name}", b"x", "application/octet-stream")

    def put(self, rows: list[dict[str, Any]]) -> None:
        self.store.put_bytes(self.uri, "\n".join(map(json.dumps, rows)).encode(), "application/jsonl")


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"row-{n}", "image_uri": "anna.png", "audio_uri": "speech.wav", "prompt": f"{n} speaks."}
        for n in range(count)
    ]


@pytest.fixture
def site(s3_settings: Settings, object_store: ObjectStore, engine: sa.Engine) -> Site:
    return Site(s3_settings, object_store, engine)
