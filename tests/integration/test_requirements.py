"""Check that missing parts of an installation are reported before a job spends anything."""

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import torch
from sqlalchemy.engine import make_url

from s2v_tasks.cli.installation import check
from s2v_tasks.errors import ConfigurationError, UnavailableError
from s2v_tasks.metadata import migrate
from s2v_tasks.runtime import outages
from s2v_tasks.runtime.outages import RetryPolicy, retried
from s2v_tasks.runtime.requirements import check_requirements, open_snapshot
from s2v_tasks.settings import Settings, config_dir, load_settings
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.objects import ListedObject
from s2v_tasks.storage.s3 import ObjectStore
from tests.integration.conftest import Run, run_job


def test_a_complete_installation_passes(settings: Settings, store: ObjectStore) -> None:
    """An installation with buckets, tools, configuration and snapshot passes."""
    check_requirements(settings, store)


def test_everything_that_is_missing_is_named_at_once_with_its_remedy(settings: Settings, tmp_path: Path) -> None:
    """One error has a sentence each for a missing snapshot, a missing bucket and an unknown GPU."""
    missing = {"snapshot_path": tmp_path, "output_uri": "s3://no-such-bucket/videos", "gpu": "abacus"}
    poor = settings.model_copy(update=missing)
    with pytest.raises(ConfigurationError) as caught:
        check_requirements(poor, ObjectStore.from_settings(poor))
    said = str(caught.value)
    assert f"S2V_SNAPSHOT_PATH is {tmp_path}: expected the folder with the model weights" in said
    assert "bucket 'no-such-bucket' does not exist; create it or correct S2V_DATA_URI and S2V_OUTPUT_URI" in said
    assert "S2V_GPU='abacus' is not an entry" in said


def test_a_wrong_file_of_adapters_is_named(settings: Settings, store: ObjectStore, tmp_path: Path) -> None:
    """An entry of adapters.yaml without a digest is reported before a job names it."""
    folder = shutil.copytree(config_dir(settings), tmp_path / "config")
    (folder / "adapters.yaml").write_text("voice: {path: voice.safetensors}")
    with pytest.raises(ConfigurationError, match=r"adapters\.yaml is not a valid file of adapters"):
        check_requirements(settings.model_copy(update={"config_dir": folder}), store)


def test_a_store_that_is_away_is_waited_for(
    settings: Settings, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing, whose first page is read later, is repeated during an outage, too."""
    listing, asked = ObjectStore.listing, []

    def away_first(asked_store: ObjectStore, prefix: str) -> Iterator[ListedObject]:
        asked.append(prefix)
        if len(asked) == 1:
            raise UnavailableError("connection refused")
        yield from listing(asked_store, prefix)

    monkeypatch.setattr(ObjectStore, "listing", away_first)
    monkeypatch.setattr(outages, "LONGEST_PAUSE_SECONDS", 0.0)
    check_requirements(settings, retried(store, "S3", RetryPolicy(60)))
    assert asked == [f"{uri}/" for uri in (settings.data_uri, settings.data_uri, settings.output_uri)]


def test_a_worker_that_renders_in_pods_needs_no_snapshot(settings: Settings, store: ObjectStore) -> None:
    """Without local rendering, a worker passes without a snapshot."""
    check_requirements(settings.model_copy(update={"snapshot_path": None, "execution": "kubernetes"}), store)


def test_check_passes_for_a_complete_installation(settings: Settings, store: ObjectStore) -> None:
    """`s2v check` prints one line and leaves nothing in the buckets."""
    before = [found.uri for uri in (settings.data_uri, settings.output_uri) for found in store.listing(uri)]
    command = [sys.executable, "-m", "s2v_tasks.cli", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "all requirements are met\n"
    after = [found.uri for uri in (settings.data_uri, settings.output_uri) for found in store.listing(uri)]
    assert after == before


@pytest.mark.parametrize("action", ["s3:PutObject", "s3:GetObject", "s3:DeleteObject"])
def test_check_finds_a_missing_right_in_the_output_bucket(
    settings: Settings, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Without it, a job would fail after all its clips are rendered."""
    bucket = f"output-{uuid.uuid4().hex}"
    store.ensure_bucket(bucket)
    client = vars(store)["_connection"].client
    denied = {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": f"arn:aws:s3:::{bucket}/*"}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [denied]}))
    monkeypatch.setenv("S2V_OUTPUT_URI", f"s3://{bucket}/videos")
    load_settings.cache_clear()
    with pytest.raises(ConfigurationError, match=rf"s3://{bucket}/videos/s2v-check-\w+ at .*the permissions they give"):
        check()


def test_check_finds_that_unfinished_uploads_cannot_be_listed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this right, each housekeeping would fail."""

    def denied(store: ObjectStore, prefix: str) -> Iterator[None]:
        raise ConfigurationError(f"Failed listing unfinished uploads of {store.uri(prefix)}: refused (AccessDenied)")

    monkeypatch.setattr(ObjectStore, "unfinished_uploads", denied)
    with pytest.raises(ConfigurationError, match=r"unfinished uploads of s3://.*/jobs/: refused"):
        check()


def test_check_finds_a_role_that_may_only_read(
    settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role that may read all tables but change none is refused with the table and the remedy."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'reader'; GRANT pg_read_all_data TO reader")
        reader = make_url(postgres_url).set(username="reader", password="reader")
        monkeypatch.setenv("S2V_DATABASE_URL", reader.render_as_string(hide_password=False))
        load_settings.cache_clear()
        with pytest.raises(
            ConfigurationError, match=r"permission denied for table \w+\): grant the user .* the rights"
        ):
            check()
        connection.execute("DROP ROLE reader")


@pytest.mark.parametrize(("name", "value"), [("WORK_DIR", "/proc/scratch"), ("WEBHOOK_SECRET", "whsec_no-base64")])
def test_check_finds_settings_that_fail_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A scratch folder that cannot be made fails each job; a wrong secret loses its messages."""
    monkeypatch.setenv(f"S2V_{name}", value)
    load_settings.cache_clear()
    with pytest.raises(ConfigurationError, match=rf"(?i){name}"):
        check()


def test_check_finds_an_old_schema_other_weights_and_a_missing_gpu_at_once(
    settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fault has its own sentence, also weights of the tiny model where the plan is for the 14B model."""
    migrate.downgrade(postgres_url, "-1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name, value in {"MODEL": "wan2.2-s2v-14b", "DEVICE": "cuda"}.items():
        monkeypatch.setenv(f"S2V_{name}", value)
    load_settings.cache_clear()
    with pytest.raises(ConfigurationError) as caught:
        check()
    said = str(caught.value)
    assert "s2v db upgrade" in said
    assert "is not wan2.2-s2v-14b: its config.json has dim=64 instead of 5120, ffn_dim=128 instead of 13824" in said
    assert "S2V_DEVICE is cuda, but no GPU is visible" in said


def test_check_finds_weights_that_do_not_fit(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers of the weights are compared with config.json before a GPU loads them."""
    assert settings.snapshot_path is not None
    other = shutil.copytree(settings.snapshot_path, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"audio_dim": 16}))
    monkeypatch.setenv("S2V_SNAPSHOT_PATH", str(other))
    load_settings.cache_clear()
    with pytest.raises(ConfigurationError, match=r"do not fit S2VTransformer: of another shape: casual_audio_encoder"):
        check()


def test_a_folder_above_the_weights_is_corrected(settings: Settings) -> None:
    """For a folder that only contains the folder of the weights, the message names the latter."""
    assert settings.snapshot_path is not None
    with pytest.raises(ConfigurationError, match=rf"the weights are in {settings.snapshot_path}: use that folder\."):
        open_snapshot(settings.model_copy(update={"snapshot_path": settings.snapshot_path.parent}), "tiny")


def test_check_asks_no_gpu_of_a_machine_that_renders_in_pods(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine that renders in pods needs neither GPU nor weights."""
    for name, value in {"EXECUTION": "kubernetes", "DEVICE": "cuda", "SNAPSHOT_PATH": ""}.items():
        monkeypatch.setenv(f"S2V_{name}", value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    load_settings.cache_clear()
    check()
    assert "all requirements are met" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 128),
        ("ffn_dim", 256),
        ("num_layers", 5),
        ("text_dim", 64),
        ("text_len", 256),
        ("audio_inject_layers", [1]),
    ],
)
def test_each_dimension_of_the_model_is_compared(
    settings: Settings, store: ObjectStore, tmp_path: Path, field: str, value: object
) -> None:
    """Weights that differ from the model in one dimension are refused."""
    assert settings.snapshot_path is not None
    other = tmp_path / "other"
    shutil.copytree(settings.snapshot_path, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ConfigurationError, match=rf"is not tiny: its config\.json has {field}="):
        check_requirements(settings.model_copy(update={"snapshot_path": other}), store)


@contextmanager
def without_rights_of_root() -> Iterator[None]:
    """Run the block as an account for which the rights of files hold."""
    account = os.geteuid()
    if account == 0:
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(account)


@pytest.mark.parametrize("name", [".", "config.json", "Wan2.1_VAE.pth", "google/umt5-xxl"])
def test_weights_that_are_not_readable_are_named(settings: Settings, name: str) -> None:
    """The message names the file, the setting and the account, not the scratch folder."""
    assert settings.snapshot_path is not None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        copied = Path(folder) / "weights"
        shutil.copytree(settings.snapshot_path, copied)
        for path in copied.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        found = settings.model_copy(update={"snapshot_path": copied})
        open_snapshot(found, "tiny")
        (copied / name).chmod(0)
        with without_rights_of_root(), pytest.raises(ConfigurationError) as caught:
            open_snapshot(found, "tiny")
        (copied / name).chmod(0o755)
    said = str(caught.value)
    assert re.search(rf"^S2V_SNAPSHOT_PATH is {copied}, but \S+ is not readable: .*this account \(uid \d+\)", said)
    assert str(copied / name) in said


@pytest.mark.parametrize("step", ["encode_conditions", "render_clip"])
def test_a_step_refuses_weights_of_another_model_than_the_plan_is_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, step: str
) -> None:
    """A pod whose weights differ from the plan's model refuses the step before computing.

    If the model of the installation was changed, the message says so and names the remedy.
    """
    run("stage_inputs")
    run("plan_clips")
    if step == "render_clip":
        run("encode_conditions")
    assert settings.snapshot_path is not None
    other = tmp_path / "other"
    shutil.copytree(settings.snapshot_path, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    monkeypatch.setenv("S2V_SNAPSHOT_PATH", str(other))
    load_settings.cache_clear()
    with pytest.raises(ConfigurationError, match=r"^snapshot \S+ is not tiny: its config\.json has num_layers=3 inst"):
        run(step, *([0] if step == "render_clip" else []))
    monkeypatch.setenv("S2V_MODEL", "talker")
    load_settings.cache_clear()
    with pytest.raises(ConfigurationError, match=r"the model tiny, and S2V_MODEL is talker now.* planned for talker,"):
        run(step, *([0] if step == "render_clip" else []))


def test_a_rerun_that_starts_again_is_planned_for_the_current_model(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the model of the installation has changed, the plan of the earlier start could never be rendered."""
    request = {"image_uri": store.uri("portrait.jpg"), "audio_uri": store.uri("speech.mp3"), "prompt": "She speaks."}
    request |= {"num_clip": 1, "size": "128*128"}
    rerun = request | {"sample_steps": 3, "parent_job_id": "parent", "from_clip": 0}

    def planned_model(job_id: str) -> str:
        run_job(job_id, "plan_clips")
        return str(json.loads(store.get_bytes(JobLayout(job_id).plan))["model"])

    run_job("parent", "stage_inputs", request_json=json.dumps(request))
    assert planned_model("parent") == "tiny"
    run_job("child", "stage_inputs", request_json=json.dumps(rerun))
    assert planned_model("child") == "tiny"
    monkeypatch.setenv("S2V_MODEL", "talker")
    load_settings.cache_clear()
    assert planned_model("child") == "talker"
