"""Check the whole DAG on the embedded services, with good, interrupted and bad jobs."""

import json
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2v_tasks.embedded.demo import DemoInputs, run_demo
from s2v_tasks.errors import JobTakenError, PermanentError
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.metadata.session import engine_from_settings
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.request_fields import MAX_PROMPT_CHARACTERS
from s2v_tasks.settings import Settings, config_dir
from s2v_tasks.storage.layout import JobLayout, output_video_uri
from s2v_tasks.storage.objects import file_sha256
from s2v_tasks.storage.s3 import ObjectStore
from tests.integration.conftest import stored_job

SAMPLES = Path(__file__).parents[1] / "samples"
# Two clips of one second: small enough for seconds, long enough to have a motion state between them.
FIELDS = {"num_clip": 2, "infer_frames": 16, "sample_steps": 2, "size": "128*128", "base_seed": 7}


@pytest.fixture
def metadata(stack: Settings) -> Iterator[MetadataStore]:
    engine = engine_from_settings(stack)
    yield MetadataStore(engine)
    engine.dispose()


@pytest.fixture
def store(stack: Settings) -> ObjectStore:
    return ObjectStore.from_settings(stack)


@pytest.fixture(scope="session")
def whole_video(stack_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video of the uninterrupted job `whole`."""
    out_dir = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2V_HOME", str(stack_home))
        assert run_demo(stack_home, DemoInputs(), dict(FIELDS), out_dir=out_dir, job_id="whole") == 0
    return out_dir / "whole.mp4"


def test_the_dag_makes_a_validated_video(
    whole_video: Path, stack: Settings, store: ObjectStore, metadata: MetadataStore
) -> None:
    """The published video equals the delivered one, has its planned length, and is in the metadata store."""
    job = stored_job(metadata, "whole")
    result = json.loads(store.get_bytes(JobLayout("whole").result))
    assert (job.status, job.reason, job.num_clip, job.num_frames) == ("succeeded", None, 2, 32)
    assert job.video_uri == output_video_uri(stack, "whole")
    assert job.sha256 == result["sha256"] == file_sha256(whole_video)
    assert [clip.status for clip in job.clips] == ["succeeded", "succeeded"]
    assert {event.step for event in job.events if event.event == "step_finished"} == {
        "stage_inputs", "plan_clips", "encode_conditions", "render_clip", "stitch", "mux_audio", "validate", "publish",
        "close_job",
    }  # fmt: skip
    report = json.loads((whole_video.parent / "whole.report.json").read_text())
    assert [check["name"] for check in report["checks"] if not check["ok"]] == []
    assert (whole_video.parent / "whole.contact_sheet.jpg").stat().st_size > 0


def test_a_job_id_that_another_demo_has_is_refused(
    whole_video: Path, stack_home: Path, metadata: MetadataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id is refused before anything runs, or after the run if the other job was first by a moment."""
    before = stored_job(metadata, "whole")
    with pytest.raises(JobTakenError, match="other values of base_seed"):
        run_demo(stack_home, DemoInputs(), FIELDS | {"base_seed": 8}, out_dir=tmp_path, job_id="whole")
    with pytest.raises(PermanentError, match="is not a file"):
        run_demo(stack_home, DemoInputs(image=tmp_path / "none.png"), dict(FIELDS), out_dir=tmp_path, job_id="whole")
    assert stored_job(metadata, "whole") == before

    def other_comes_first(_services: Any, run_conf: dict[str, Any]) -> None:
        metadata.jobs.enqueue(
            "raced", {k: v for k, v in run_conf.items() if k != "job_id"} | {"prompt": "The other's."}
        )
        metadata.jobs.succeed("raced", "s3://out/raced.mp4", "ab" * 32)

    monkeypatch.setattr("s2v_tasks.embedded.demo._run_dag", other_comes_first)
    with pytest.raises(JobTakenError, match="other values of prompt"):
        run_demo(stack_home, DemoInputs(), dict(FIELDS), out_dir=tmp_path, job_id="raced")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_job_continues(
    whole_video: Path, stack_home: Path, metadata: MetadataStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL of the demo in clip 1 ends all its processes; the next run reuses clip 0 and gives the same bytes.

    Its stdout has the result only; its stderr has the log of the steps.
    """
    fields = [f"--{name.replace('_', '-')}={value}" for name, value in FIELDS.items()]
    command = [sys.executable, "-m", "s2v_tasks.cli", "demo", "--job-id", "interrupted", "--out", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        demo = subprocess.Popen([*command, *fields], stdout=log, stderr=log, start_new_session=True)
    wait_until(lambda: clip_is_rendering(metadata, "interrupted", 1), demo)
    demo.kill()
    demo.wait()
    while renderers("interrupted"):
        time.sleep(0.05)
    assert run_demo(stack_home, DemoInputs(), dict(FIELDS), out_dir=tmp_path, job_id="interrupted") == 0
    shown = capsys.readouterr()
    assert ("step_finished" in shown.out, "step_finished" in shown.err) == (False, True)
    assert str(tmp_path / "interrupted.mp4") in shown.out
    job = stored_job(metadata, "interrupted")
    assert str(job.sha256) in shown.out  # in one line, as no terminal is there
    assert [clip.reused for clip in job.clips] == [True, False]
    assert (tmp_path / "interrupted.mp4").read_bytes() == whole_video.read_bytes()


def test_an_old_success_is_not_that_of_a_run_that_never_began(
    whole_video: Path, stack_home: Path, stack: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DAG that cannot be loaded fails the demo, although an earlier job of that name has succeeded."""
    config = shutil.copytree(config_dir(stack), tmp_path / "config", ignore=shutil.ignore_patterns("pods"))
    monkeypatch.setenv("S2V_CONFIG_DIR", str(config))
    monkeypatch.setenv("S2V_EXECUTION", "kubernetes")  # whose templates are not there
    assert run_demo(stack_home, DemoInputs(), dict(FIELDS), out_dir=tmp_path, job_id="whole") != 0
    assert list(tmp_path.glob("*.mp4")) == []


def clip_is_rendering(metadata: MetadataStore, job_id: str, clip_index: int) -> bool:
    job = metadata.jobs.get(job_id)
    return job is not None and len(job.clips) > clip_index and job.clips[clip_index].status == "rendering"


def renderers(job_id: str) -> list[int]:
    """Return the processes that render for a job."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"render-clip" in arguments and job_id.encode() in arguments:
            pids.append(int(folder.name))
    return pids


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until the condition holds; fail if the process ends before."""
    while not condition():
        assert process.poll() is None
        time.sleep(0.05)


def test_bad_speech_fails_the_run_once(
    stack_home: Path, stack: Settings, store: ObjectStore, metadata: MetadataStore, tmp_path: Path
) -> None:
    """Bad input ends the DAG with exit code 65 and a reason of one sentence, without a retry and without a video."""
    speech = tmp_path / "my speech.wav"
    speech.write_text("This is text.")
    inputs = DemoInputs(audio=speech)
    assert run_demo(stack_home, inputs, dict(FIELDS), out_dir=tmp_path / "out", job_id="bad-speech") == 65
    job = stored_job(metadata, "bad-speech")
    assert job.status == "failed"
    assert job.reason is not None
    assert "not a readable audio file" in job.reason
    assert len([event for event in job.events if event.event == "step_failed"]) == 1
    assert not store.exists(output_video_uri(stack, "bad-speech"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("long-prompt", {"prompt": "x" * 10_000}, str(MAX_PROMPT_CHARACTERS)),
        ("unknown-preset", {"preset": "cinema"}, "expected one of quick"),
        ("odd-frames", {"infer_frames": 50}, "multiple of 4"),
        ("odd-size", {"size": "100*100"}, "multiples of 32"),
    ],
)
def test_a_request_that_the_form_refuses_is_stored(
    stack_home: Path,
    metadata: MetadataStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    fields: dict[str, Any],
    reason: str,
) -> None:
    """A bad field starts no run: exit code 65, and the job has its reason, which is printed on stderr."""
    request = FIELDS | fields
    assert run_demo(stack_home, DemoInputs(), request, out_dir=tmp_path, job_id=name) == 65
    job = stored_job(metadata, name)
    assert job.status == "failed"
    assert reason in (job.reason or "")
    shown = capsys.readouterr()
    assert (str(job.reason) in shown.out, str(job.reason) in shown.err) == (False, True)


def test_a_malformed_job_id_is_refused_at_once(tmp_path: Path) -> None:
    """A malformed job id is refused before anything starts, and no job is stored."""
    with pytest.raises(PermanentError, match="job id 'A B'"):
        run_demo(tmp_path / "home", DemoInputs(), {}, out_dir=tmp_path, job_id="A B")
    assert list(tmp_path.iterdir()) == []


def empty(path: Path) -> None:
    path.touch()


def half_an_mp3(path: Path) -> None:
    path.write_bytes((SAMPLES / "speech.mp3").read_bytes()[:30_000])


def half_an_hour(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", "not compressed"))
        file.writeframes(bytes([128]) * 8000 * 1800)


def a_video(path: Path) -> None:
    encode_clip(np.full((16, 64, 64, 3), 90, np.uint8), path.with_suffix(".mp4"))
    path.with_suffix(".mp4").rename(path)


@pytest.mark.parametrize(
    ("field", "name", "make"),
    [
        ("audio_uri", "empty.wav", empty),
        ("audio_uri", "truncated.mp3", half_an_mp3),
        ("audio_uri", "half-an-hour.wav", half_an_hour),
        ("image_uri", "empty.png", empty),
        ("image_uri", "video.png", a_video),
        ("image_uri", "missing.png", None),
    ],
)
def test_inputs_that_cannot_be_used_end_the_first_step(
    store: ObjectStore,
    metadata: MetadataStore,
    tmp_path: Path,
    field: str,
    name: str,
    make: Callable[[Path], None] | None,
) -> None:
    """The first step ends with exit code 65 and a sentence that is also the reason of the job."""
    request = {
        "image_uri": "s3://s2v/samples/portrait.jpg",
        "audio_uri": "s3://s2v/samples/speech.mp3",
        "prompt": "A person speaks.",
        field: f"s3://s2v/bad/{name}",
    }
    if make is not None:
        make(tmp_path / name)
        store.upload(tmp_path / name, request[field], "application/octet-stream")
    job_id = f"bad-{name.replace('.', '-')}"
    command = [sys.executable, "-m", "s2v_tasks.cli", "stage-inputs", "--job-id", job_id]
    done = subprocess.run(
        [*command, "--request-json", json.dumps(request)], capture_output=True, text=True, check=False
    )
    job = stored_job(metadata, job_id)
    assert (done.returncode, job.status) == (65, "failed")
    assert job.reason is not None
    assert job.reason.removeprefix("stage_inputs: ") in done.stderr
