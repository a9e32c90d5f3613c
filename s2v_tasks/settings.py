"""Configuration of an installation, read once per process from `S2V_*` variables.

Order: environment, then the file that the embedded stack leaves behind (`.s2v/stack.env`), then the defaults.
White space around a value (a line end of a secret that was made from a file) is removed. Unknown `S2V_*` names are
refused. `docs/configuration.md` is generated from this model.
"""

import os
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from s2v_tasks.errors import ConfigurationError

PREFIX = "S2V_"
_UNSEEN = "\ufeff\u200b"  # byte order mark and zero-width space: editors and web pages leave them at the ends


class Settings(BaseSettings):
    """Every setting, its default and its meaning. Environment variable = `S2V_` + the name in upper case."""

    # ConfigMaps and compose files name variables that they leave empty: those are not set.
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    home: Path = Field(
        Path(".s2v"), description="Folder of the embedded stack: its databases, objects, logs and snapshot."
    )
    config_dir: Path | None = Field(None, description="Folder of presets.yaml, models.yaml and the other YAML files.")
    execution: Literal["local", "kubernetes"] = Field("local", description="How Airflow runs a step.")
    local_renders: int = Field(
        1,
        ge=1,
        description="Clips that render at a time where Airflow's workers do it: as many as they have GPU sets. As many "
        "other jobs may encode their conditions meanwhile.",
    )
    retry_seconds: int = Field(
        900,
        ge=0,
        description="How long a step repeats a call while S3 or PostgreSQL is away, before its attempt ends: so long a "
        "finished clip waits to be stored. Airflow's retries of a step last as long, too.",
    )
    nproc_per_node: int = Field(1, ge=1, le=8, description="Processes (GPUs) that render one clip.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the engine runs; auto: a GPU if present.")
    parallel_layout: str = Field(
        "auto", description="How the GPUs share a clip: auto, or for example cfg2,ulysses2,fsdp."
    )
    noise_device: Literal["run", "cpu"] = Field(
        "run", description="Where noise is drawn: on the device of the run, or on the CPU, the same on every device."
    )
    attention: Literal["auto", "sdpa", "cudnn", "flash", "flash2", "flash3", "sage"] = Field(
        "auto",
        description="Kernel of self attention. auto: cudnn on Hopper and newer GPUs, flash on others, sdpa on a CPU. "
        "flash2, flash3 and sage are packages of their own.",
    )
    compile: bool = Field(
        False, description="Whether torch.compile fuses the blocks: faster steps after a slow first one."
    )
    compile_cache: Path | None = Field(
        None,
        description="Folder in which torch.compile keeps its results for later processes; empty: compile-cache below "
        "S2V_HOME. Needed with S2V_COMPILE only.",
    )
    weights_dtype: Literal["auto", "fp8", "fp8-dynamic"] = Field(
        "auto",
        description="Weights of the blocks: auto, bf16 on a GPU; fp8, half the memory; fp8-dynamic, multiplied in fp8.",
    )
    step_cache: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Leave out the blocks behind the first while its output changes by less than this share; 0: never.",
    )
    snapshot_path: Path | None = Field(None, description="Folder with the model weights in the official layout.")
    model: str = Field(
        "wan2.2-s2v-14b", description="Entry of models.yaml that the snapshot is: dimensions for the plan."
    )
    gpu: str = Field("h100-sxm", description="Entry of gpus.yaml that prices a plan: speed, memory, cost per hour.")

    pod_schedule_seconds: int = Field(
        3600, ge=1, description="How long a pod may wait for a node with free GPUs; then its step fails."
    )
    pod_startup_seconds: int = Field(
        900, ge=1, description="How long a pod may take from its node to its start: pulling the image."
    )

    database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL URL of the project's own database, user and password percent-encoded; "
        "docs/metadata.md has its forms, also those for schemas and PgBouncer.",
    )
    data_uri: str = Field("s3://s2v", description="Where jobs live: s3://bucket[/prefix].")
    output_uri: str = Field("s3://s2v/output", description="Where finished videos are published.")
    s3_endpoint_url: str | None = Field(None, description="Endpoint of an S3-compatible server; empty for AWS.")
    s3_public_endpoint_url: str | None = Field(
        None, description="Endpoint under which browsers reach that server, for links; empty: the same."
    )
    s3_region: str = Field("us-east-1", description="Region of the buckets.")
    s3_access_key_id: str | None = Field(None, description="Empty: the usual AWS credential chain.")
    s3_secret_access_key: SecretStr | None = Field(None, description="Empty: the usual AWS credential chain.")
    s3_checksums: Literal["always", "when_required"] = Field(
        "always",
        description="Whether requests carry the checksums of S3; when_required: for servers that do not know them. The "
        "SHA-256 that this system keeps of each object is verified in both cases.",
    )

    drop_uri: str | None = Field(
        None, description="Drop folder with incoming/, accepted/ and rejected/; empty: drop/ below S2V_DATA_URI."
    )
    allowed_input_uris: str = Field(
        "", description="Comma list of further s3://bucket/prefix whose files requests may name; see docs/security.md."
    )
    airflow_url: str | None = Field(
        None, pattern=r"^https?://", description="Airflow's API server, for the commands that start and cancel jobs."
    )
    airflow_user: str | None = Field(None, description="Account in Airflow; empty where it asks for none.")
    airflow_password: SecretStr | None = Field(None, description="Password of that account.")
    airflow_token: SecretStr | None = Field(None, description="A token instead of account and password.")

    drop_settle_seconds: int = Field(
        60, ge=0, description="A dropped folder without request.json is taken when nobody wrote in it for so long."
    )
    drop_abandoned_seconds: int = Field(
        3600, ge=0, description="A dropped folder that lacks a file is refused when nobody wrote in it for so long."
    )
    drop_queue_url: str | None = Field(
        None, description="SQS queue with the events of the drop folder; empty: it is only swept every minute."
    )
    max_running_jobs: int = Field(
        16,
        ge=1,
        description="Most jobs at a time; those of the drop folder and of batches start while fewer run. "
        "Hundreds of runs at once keep each other from ending.",
    )
    batch_schedule: str | None = Field(None, description="Cron expression of the DAG s2v_batch; empty: by hand only.")
    batch_uri: str | None = Field(None, description="Manifest of a scheduled batch: s3://bucket/folder/name.jsonl.")

    retention_days: int = Field(
        30, ge=0, description="Housekeeping deletes superseded clips, saved states and done drops after so many days."
    )
    housekeeping_apply: bool = Field(
        False, description="Whether the daily housekeeping deletes; without it, it only lists what it would delete."
    )

    max_clips: int = Field(240, ge=1, le=1000, description="Most clips of one job.")
    max_gpu_seconds: float | None = Field(
        None, gt=0, description="Most GPU-seconds that a plan may be expected to need; empty: no limit."
    )
    max_cost: float | None = Field(
        None, gt=0, description="Most that a plan may be expected to cost, in the currency of S2V_GPU; empty: no limit."
    )
    max_audio_seconds: int = Field(1200, ge=1, description="Longest speech of one job.")
    max_input_bytes: int = Field(512 * 1024**2, ge=1, description="Largest input file.")
    work_dir: Path | None = Field(None, description="Scratch folder of the steps; empty: the system's.")
    ffmpeg_path: Path | None = Field(None, description="ffmpeg to use; empty: the pinned one of the package.")
    ffprobe_path: Path | None = Field(None, description="ffprobe to use; empty: the pinned one of the package.")
    webhook_url: SecretStr | None = Field(
        None, description="Told of every job whose request names no webhook of its own (docs/how-to/webhooks.md)."
    )
    webhook_secret: SecretStr | None = Field(
        None, description="Shared with the receivers, who verify signatures with it; without it nothing is sent."
    )
    webhook_allowed_hosts: str = Field(
        "", description="Hosts that requests may name as webhook, separated by commas; `.example.com`: all below it."
    )
    webhook_allow_private: bool = Field(
        False, description="Whether webhooks may call private, loopback and link-local addresses."
    )

    log_json: bool = Field(False, description="Logs as JSON lines.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe log line shown.")

    @model_validator(mode="before")
    @classmethod
    def _strip(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Remove white space around each value; a setting of which nothing is left is not set."""
        stripped = {name: _stripped(value) if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_control_characters(cls, value: Any) -> Any:
        """Refuse a line end or another control character inside a value, without showing the value."""
        if isinstance(value, str) and any(unicodedata.category(character) == "Cc" for character in value):
            raise ValueError("has a line end or another control character inside; expected one line of text")
        return value


def compile_cache_dir(settings: Settings) -> Path:
    """Return the folder in which torch.compile keeps its results."""
    return settings.compile_cache or settings.home / "compile-cache"


def stack_env_path() -> Path:
    """The file in which the embedded stack leaves its addresses and credentials."""
    return Path(_stripped(os.environ.get(PREFIX + "HOME", "")) or ".s2v") / "stack.env"


def _stripped(value: str) -> str:
    """The value without white space and invisible characters around it."""
    kept = value.strip()
    while kept != (shorter := kept.strip(_UNSEEN).strip()):
        kept = shorter
    return kept


@cache
def load_settings() -> Settings:
    """The settings of this process; ConfigurationError names a bad or unknown variable."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise ConfigurationError(f"{', '.join(unknown)}: not a setting; see docs/configuration.md for the known names.")
    try:
        return Settings(_env_file=stack_env_path(), _env_file_encoding="utf-8")
    except ValidationError as error:
        names = "; ".join(f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(f"Bad setting: {names}.") from None


def config_dir(settings: Settings) -> Path:
    """The folder of the YAML configuration: the setting, else the checkout's, else the one in the package."""
    package = Path(__file__).parent
    candidates = [settings.config_dir] if settings.config_dir else [package.parent / "config", package / "config"]
    for folder in candidates:
        if (folder / "presets.yaml").is_file():
            return folder
    raise ConfigurationError(f"No presets.yaml in {candidates[0]}: set S2V_CONFIG_DIR to the folder that has it.")
