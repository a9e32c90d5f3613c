"""The drop folder, and functions that drop files into it."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from s2v_tasks.ingestion.drop_sweep import Sweeper
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.catalogue import load_catalogue
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.settings import Settings, config_dir
from s2v_tasks.storage.layout import drop_folder_uri
from s2v_tasks.storage.s3 import ObjectStore

PROMPT = b"A person speaks."


class Folder:
    """The drop folder of a test, its metadata and its sweep."""

    def __init__(self, settings: Settings, store: ObjectStore, engine: Any) -> None:
        self.uri = drop_folder_uri(settings)
        metadata = MetadataStore(engine)
        self.store, self.drops, self.jobs, self.queue = store, metadata.drops, metadata.jobs, metadata.queue
        self._sweeper = Sweeper(settings, store, self.drops, load_catalogue(config_dir(settings)))

    def drop(self, name: str, request: Any = None, **files: bytes) -> None:
        """Write a folder, request.json last; two underscores in a keyword stand for a dot in a file name."""
        for file, data in ({"portrait__png": b"image", "speech__wav": b"audio", "prompt__txt": PROMPT} | files).items():
            if data:
                self.put(f"{name}/{file.replace('__', '.')}", data)
        if request is not None:
            data = request if isinstance(request, bytes) else json.dumps(request).encode()
            self.put(f"{name}/request.json", data)

    def put(self, name: str, data: bytes) -> None:
        self.store.put_bytes(f"{self.uri}/incoming/{name}", data, "application/octet-stream")

    def sweep(self, *, seconds_later: int = 0) -> dict[str, int]:
        return self._sweeper.run(datetime.now(UTC) + timedelta(seconds=seconds_later))

    def names(self, part: str = "") -> list[str]:
        return [item.uri.removeprefix(f"{self.uri}/") for item in self.store.listing(f"{self.uri}/{part}")]

    def error(self, name: str) -> str:
        return str(json.loads(self.store.get_bytes(f"{self.uri}/rejected/{name}/error.json"))["error"])

    def requests(self) -> list[Request]:
        return [parse_request(job.request or {}) for job in self.jobs.recent()]


def counts(**expected: int) -> dict[str, int]:
    """Return the counts of a sweep; counts that are not given are 0."""
    return {"accepted": 0, "rejected": 0, "postponed": 0, "unready": 0} | expected
