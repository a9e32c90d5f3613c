"""Builds of the outputs of a clip, and their storage."""

from pathlib import Path
from typing import Any

from s2v_tasks.schemas.manifest import Artifact, ClipFacts
from s2v_tasks.schemas.steps import RENDER_CLIP
from s2v_tasks.storage.artifacts import ArtifactStore, Build, Built, OutputFile, Produced, Work
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

FACTS = ClipFacts(start_frame=0, end_frame=48)


LAYOUT = JobLayout("job-1")


SPEECH = Artifact(key="jobs/job-1/inputs/audio.wav", sha256="0" * 64, size_bytes=1)


def clip_build(content: bytes) -> Build:
    """A build of two outputs."""

    def build(folder: Path) -> Built:
        outputs = {}
        for name, key in (("clip", LAYOUT.clip(0)), ("motion", LAYOUT.motion(0))):
            (folder / name).write_bytes(content + name.encode())
            outputs[name] = OutputFile(folder / name, key, "application/octet-stream")
        return Built(outputs, facts=FACTS)

    return build


def not_built(folder: Path) -> Built:
    raise AssertionError("nothing was to be built")


def work(fingerprint: str, **changes: Any) -> Work:
    """Return the work of the first clip."""
    fields: dict[str, Any] = {
        "step": RENDER_CLIP,
        "job_id": "job-1",
        "manifest_key": LAYOUT.clip_manifest(0),
        "inputs": {"speech": SPEECH},
        "clip_index": 0,
    }
    return Work(fingerprint=fingerprint, **(fields | changes))


def produce(store: ObjectStore, fingerprint: str, build: Build, **changes: Any) -> Produced:
    return ArtifactStore(store).produce(work(fingerprint, **changes), build)
