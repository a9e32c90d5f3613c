"""Jobs with every kind of object that housekeeping handles."""

from datetime import UTC, datetime
from typing import Any

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.manifest import Artifact, Manifest
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.artifacts import producer
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

NOW = datetime.now(UTC)


def put(store: ObjectStore, *keys: str) -> list[str]:
    return [store.uri(store.put_bytes(key, b"12345", "application/octet-stream").key) for key in keys]


def make_job(store: ObjectStore, metadata: MetadataStore, job_id: str, **request: Any) -> list[str]:
    """Add a running job with one object of each kind; return the URIs of those that expire after its end."""
    layout, fingerprint = JobLayout(job_id), "ab" * 32
    metadata.jobs.enqueue(job_id, request)
    metadata.jobs.start(job_id)
    clip = store.put_bytes(layout.clip(0), b"clip", "video/mp4")
    put(store, layout.request, layout.plan, layout.clip_manifest(0))
    metadata.artifacts.record(manifest(job_id, clip))
    superseded = [layout.superseded_clip(0, fingerprint, name) for name in ("clip.mp4", "manifest.json")]
    return put(store, *superseded, layout.partial_clip(0, fingerprint, "state-0003.safetensors"))


def manifest(job_id: str, clip: Artifact) -> Manifest:
    facts = {"step": "render_clip", "job_id": job_id, "fingerprint": "ab" * 32, "inputs": {}, "outputs": {"clip": clip}}
    return Manifest(producer=producer(), started_at=NOW, finished_at=NOW, **facts)


def everything(store: ObjectStore) -> set[str]:
    bucket = store.uri("").removesuffix("/")
    return {item.uri for prefix in (bucket, load_settings().output_uri) for item in store.listing(prefix)}


def publish(store: ObjectStore, job_id: str) -> tuple[str, str]:
    [uri] = put(store, f"{load_settings().output_uri}/{job_id}.mp4")
    put(store, JobLayout(job_id).result)
    return uri, "ab" * 32
