"""Check real render processes, alone and under torchrun: interruption, continuation, failure, equal bytes."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.metadata import migrate
from s2v_tasks.metadata.session import create_engine
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.rendering.takes import take_seed
from s2v_tasks.schemas.manifest import ClipFacts, Manifest
from s2v_tasks.storage.clip_state import TakeRecords
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore
from tests.engine.render_site import JOB, Site
from tests.integration.spoiled_clips import write_one_limit

SAMPLES = Path(__file__).parents[1] / "samples"
REQUEST = {
    "prompt": "A person speaks.", "num_clip": 2, "infer_frames": 16, "sample_steps": 40, "size": "128*128",
    "base_seed": 7,
}  # fmt: skip
# The steps before rendering, in one process of their own.
PREPARE = """
import sys
from s2v_tasks.steps import encode_conditions, plan_clips, stage_inputs
from s2v_tasks.runtime.context import run_step
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, PLAN_CLIPS, STAGE_INPUTS

job_id, request_json = sys.argv[1:]
run_step(stage_inputs.run, step=STAGE_INPUTS, job_id=job_id, request_json=request_json)
run_step(plan_clips.run, step=PLAN_CLIPS, job_id=job_id)
run_step(encode_conditions.run, step=ENCODE_CONDITIONS, job_id=job_id)
"""
# Rank 1 fails in the forward of its third solver step, with the CLI around it as in production.
BROKEN_RANK = """
import os
from s2v_tasks.cli import main
from s2v_tasks.engine.models.transformer import S2VTransformer

forward, calls = S2VTransformer.forward, []

def failing(*arguments):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 3:
        raise ValueError("the third step of rank 1 is broken")
    return forward(*arguments)

S2VTransformer.forward = failing
main()
"""
# Notes the seeds of each rank. The noise `spoiled` gives a picture of one colour; rank 0 ends at the noise `killed_at`.
SPOILED = """
import os
import signal
from pathlib import Path

from s2v_tasks.cli import main
from s2v_tasks.engine.pipeline import S2VPipeline

draw, rank = S2VPipeline._draw_noise, os.environ["RANK"]

def noted(pipeline, seed, shape):
    with Path(__file__).with_name(f"{{Path(__file__).stem}}-{{rank}}").open("a") as seeds:
        seeds.write(f"{{seed}} ")
    if rank == "0" and seed == {killed_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(pipeline, seed, shape) + 20 * (seed == {spoiled})

S2VPipeline._draw_noise = noted
main()
"""
CLI = ("-m", "s2v_tasks.cli")
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def site(
    postgres_server: PostgresServer,
    moto_endpoint: str,
    tiny_snapshot_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """A planned job with its conditions, and its services on this machine."""
    url = postgres_server.ensure_database(f"worker_{uuid.uuid4().hex}")
    migrate.upgrade(url)
    bucket = f"test-{uuid.uuid4().hex}"
    variables = {
        "S2V_HOME": "none",
        "S2V_DATABASE_URL": url,
        "S2V_DATA_URI": f"s3://{bucket}",
        "S2V_OUTPUT_URI": f"s3://{bucket}/output",
        "S2V_S3_ENDPOINT_URL": moto_endpoint,
        "S2V_S3_ACCESS_KEY_ID": "test",
        "S2V_S3_SECRET_ACCESS_KEY": "test-secret",
        "S2V_SNAPSHOT_PATH": str(tiny_snapshot_path),
        "S2V_MODEL": "tiny",
        "S2V_GPU": "cpu",
        "S2V_DEVICE": "cpu",
    }
    store = ObjectStore(f"s3://{bucket}", endpoint_url=moto_endpoint, access_key_id="test", secret_access_key="test")
    store.ensure_bucket()
    for name in ("portrait.jpg", "woman.jpg", "speech.mp3"):
        store.upload(SAMPLES / name, f"samples/{name}", "application/octet-stream")
    request = REQUEST | {"image_uri": store.uri("samples/portrait.jpg"), "audio_uri": store.uri("samples/speech.mp3")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("S2V_")} | variables
    subprocess.run([sys.executable, "-c", PREPARE, JOB, json.dumps(request)], env=environment, check=True)
    engine = create_engine(url)
    site = Site(environment, store, MetadataStore(engine), tmp_path_factory.mktemp("attempts"), JobLayout(JOB))
    yield site
    for attempt in site.attempts:
        attempt.kill()
        for pid in attempt.pids():
            os.kill(pid, signal.SIGKILL)
    engine.dispose()


@pytest.fixture(scope="module")
def whole(site: Site) -> Manifest:
    """The manifest of the clip that one process renders without interruption."""
    attempt = site.start(*CLI)
    assert attempt.wait() == 0, attempt.log
    return site.manifest()


def test_a_terminated_process_saves_its_state_and_the_next_goes_on(site: Site, whole: Manifest) -> None:
    """After SIGTERM (exit code 75) the next attempt continues the saved state, gives equal bytes and deletes it."""
    site.forget_the_clip()
    first = site.start_held()
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 75
    assert first.error["exit_code"] == 75
    assert "the next attempt continues there" in first.error["message"]
    assert site.clip().status == "pending"
    assert not site.store.exists(site.layout.clip_manifest(0))
    manifest, state = site.partial_keys()
    assert (manifest, state[:6]) == ("manifest.json", "state-")
    second = site.start(*CLI)
    assert second.wait() == 0, second.log
    assert "step 1/" not in second.log
    assert site.manifest().outputs == whole.outputs
    assert site.partial_keys() == []


def test_a_killed_process_has_saved_its_state_and_the_next_goes_on(site: Site, whole: Manifest) -> None:
    """After SIGKILL the next attempt continues a state that was saved between two steps, with equal bytes."""
    site.forget_the_clip()
    first = site.start_held(save_seconds=0)
    deadline = time.monotonic() + 60
    while "manifest.json" not in site.partial_keys():
        assert time.monotonic() < deadline, first.log
        time.sleep(0.1)
    first.kill()
    site.metadata.clips.fail(JOB, 0, "It was killed.")  # or the next attempt would wait until it is silent
    second = site.start(*CLI)
    assert second.wait() == 0, second.log
    assert "step 1/" not in second.log
    assert site.manifest().outputs == whole.outputs
    assert site.partial_keys() == []


def test_the_cost_of_a_clip_is_recorded(site: Site, whole: Manifest) -> None:
    """Operations, time, utilisation, memory and layout are in the manifest and in the database."""
    facts = whole.facts_as(ClipFacts)
    assert (facts.pflops or 0) > 0
    assert facts.tokens == 5 * 64
    assert facts.mfu is None  # the peak of a CPU is not known
    assert (facts.peak_host_memory_bytes or 0) > 10**8
    assert (facts.device, facts.world_size) == ("cpu", 1)
    assert (facts.precision, facts.vae_precision) == ("float32", "float32")
    assert (facts.parallel_layout, facts.attention, facts.noise_device) == ("cfg1,ulysses1", "sdpa", "run")
    again = site.start(*CLI)
    assert again.wait() == 0
    assert site.clip().reused
    assert site.clip().facts == site.manifest().facts.model_dump(mode="json")


@pytest.fixture(scope="module")
def whole_of_two(site: Site, whole: Manifest) -> Manifest:
    """The manifest of the first of two clips that two processes render without interruption."""
    site.forget_the_clip()
    attempt = site.start(*TWO_RANKS, *CLI, count=2)
    assert attempt.wait() == 0, attempt.log
    result = {"job_id": JOB, "clip_index": 0, "count": 2, "reused": False}
    assert json.loads((attempt.folder / "stdout").read_text()) == result
    assert site.store.exists(site.layout.clip_manifest(1))
    return site.manifest()


def test_two_ranks_share_a_clip_stop_together_and_repeat_their_bytes(site: Site, whole_of_two: Manifest) -> None:
    """SIGTERM to torchrun stops both ranks at one step; the continued clip equals an uninterrupted one of two ranks."""
    assert whole_of_two.facts_as(ClipFacts).world_size == 2
    assert whole_of_two.facts_as(ClipFacts).parallel_layout == "cfg2,ulysses1"
    site.forget_the_clip()
    first = site.start_held(*TWO_RANKS, num_ranks=2)
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() != 0
    assert first.error["exit_code"] == 75, first.log
    assert len(site.partial_keys()) == 2
    second = site.start(*TWO_RANKS, *CLI)
    assert second.wait() == 0, second.log
    assert "step 1/" not in second.log
    assert site.manifest().outputs == whole_of_two.outputs


def test_a_killed_rank_ends_the_others_in_mid_clip(site: Site, whole_of_two: Manifest) -> None:
    """After SIGKILL of rank 1 all processes end at that step with a transient error, and the clip is not stored."""
    site.forget_the_clip()
    attempt = site.start_held(*TWO_RANKS, num_ranks=2)
    (pid,) = attempt.pids("RANK=1")
    os.kill(pid, signal.SIGKILL)
    attempt.go_on()
    assert attempt.wait() != 0
    assert "step 3/" not in attempt.log
    assert attempt.error["exit_code"] == 75
    assert "rank 0: rank 0 of 2 lost another rank" in attempt.error["message"]
    assert site.clip().status == "failed"
    assert not site.store.exists(site.layout.clip_manifest(0))
    assert attempt.pids() == []


def test_nothing_survives_a_torchrun_that_is_killed(site: Site) -> None:
    """If torchrun alone is killed, all ranks end, although they have sessions of their own."""
    site.forget_the_clip()
    attempt = site.start_held(*TWO_RANKS, num_ranks=2)
    (hanging,) = attempt.pids("RANK=1")
    os.kill(hanging, signal.SIGSTOP)
    attempt.kill()
    left = attempt.still_running()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def test_the_error_of_the_failed_rank_is_reported(site: Site, whole_of_two: Manifest, tmp_path: Path) -> None:
    """An error of rank 1 ends both ranks; its traceback is in the log, and its message is the reason."""
    site.forget_the_clip()
    (tmp_path / "broken.py").write_text(BROKEN_RANK)
    attempt = site.start(*TWO_RANKS, str(tmp_path / "broken.py"))
    assert attempt.wait() != 0
    assert attempt.error == {"exit_code": 1, "message": "rank 1: ValueError: the third step of rank 1 is broken"}
    assert "Traceback" in attempt.log
    assert 'raise ValueError("the third step of rank 1 is broken")' in attempt.log
    assert site.clip().status == "failed"
    assert not site.store.exists(site.layout.clip_manifest(0))


def test_two_ranks_repeat_a_bad_clip(site: Site, tmp_path: Path) -> None:
    """Both ranks render the retake that rank 0 decides, also if they are killed when it starts."""
    job, layout, retake = "retakes", JobLayout("retakes"), take_seed(8, 1)
    limits = tmp_path / "config"
    limits.mkdir()
    write_one_limit(limits)
    environment = site.environment | {"S2V_CONFIG_DIR": str(limits)}
    request = REQUEST | {"sample_steps": 4, "num_clip": 3, "quality": "gate"}
    request |= {"image_uri": site.store.uri("samples/woman.jpg"), "audio_uri": site.store.uri("samples/speech.mp3")}
    subprocess.run([sys.executable, "-c", PREPARE, job, json.dumps(request)], env=environment, check=True)
    gated = replace(site, environment=environment)
    (tmp_path / "first.py").write_text(SPOILED.format(spoiled=8, killed_at=retake))
    first = gated.start(*TWO_RANKS, str(tmp_path / "first.py"), count=3, job_id=job)
    assert first.wait() != 0
    assert (tmp_path / "first-0").read_text().split() == ["7", "8", str(retake)]
    (tmp_path / "second.py").write_text(SPOILED.format(spoiled=8, killed_at=None))
    second = gated.start(*TWO_RANKS, str(tmp_path / "second.py"), count=3, job_id=job)
    assert second.wait() == 0, second.log
    for rank in (0, 1):
        assert (tmp_path / f"second-{rank}").read_text().split() == [str(retake), "9"]
    takes = TakeRecords(site.store, layout).read(1)
    assert takes is not None
    assert [(take.seed, take.fails) for take in takes.takes] == [(8, True), (retake, False)]
    kept, last = (Manifest.model_validate_json(site.store.get_bytes(layout.clip_manifest(index))) for index in (1, 2))
    assert (kept.facts_as(ClipFacts).take, kept.facts_as(ClipFacts).world_size) == (1, 2)
    assert last.inputs["motion"] == kept.outputs["motion"]
