"""Configuration of an installation, read once per process from `S2V_*` variables.

Order of precedence: environment, the file that the embedded stack writes (`.s2v/stack.env`), defaults. White space
around a value is removed, such as the line end of a secret that was made from a file. Unknown names are refused.
`docs/configuration.md` is generated from this model.
"""

import os
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.stack_env import fitting_stack_env, stripped

PREFIX = "S2V_"
# "auto" and the kernels of engine/models/attention.py, which does not import the settings.
AttentionKernel = Literal["auto", "sdpa", "cudnn", "flash", "flash2", "flash3", "sage"]
_IMAGE = re.compile(r"[a-z0-9][\w.-]*(:\d+)?(/[\w.-]+)*(:\w[\w.-]{0,127}|(:\w[\w.-]{0,127})?@sha256:[0-9a-f]{64})")


class Settings(BaseSettings):
    """Every setting, its default and its meaning. Environment variable = `S2V_` + the name in upper case."""

    # An empty variable, as in a ConfigMap or a compose file, counts as not set.
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    home: Path = Field(Path(".s2v"), description="Folder of the embedded stack: databases, objects, logs and snapshot.")
    config_dir: Path | None = Field(None, description="Folder of presets.yaml, models.yaml and the other YAML files.")
    execution: Literal["local", "kubernetes"] = Field(
        "local", description="How Airflow runs the steps that need a GPU: as a process of its worker, or in a pod."
    )
    local_renders: int = Field(
        1,
        ge=1,
        description="Maximum number of clips that Airflow's workers render at the same time (S2V_EXECUTION=local): "
        "one for each set of GPUs. The same number of jobs can encode conditions in the meantime.",
    )
    retry_seconds: int = Field(
        900,
        ge=0,
        description="Seconds for which a step repeats a call while S3 or PostgreSQL is unavailable; then its attempt "
        "fails. A finished clip waits as long to be stored. Airflow's retries of a step last as long, too.",
    )
    nproc_per_node: int = Field(1, ge=1, le=8, description="Processes (GPUs) that render one clip.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of the engine; auto: a GPU if present.")
    parallel_layout: str = Field("auto", description="How GPUs share a clip: auto, or for example cfg2,ulysses2,fsdp.")
    noise_device: Literal["run", "cpu"] = Field(
        "run", description="Device that draws the noise. run: that of the render; cpu: equal noise on all devices."
    )
    attention: AttentionKernel = Field(
        "auto",
        description="Kernel of self attention. auto: cudnn on Hopper and newer GPUs, flash on others, sdpa on a CPU. "
        "flash2, flash3 and sage need their own packages.",
    )
    compile: bool = Field(False, description="Compile the blocks with torch.compile: faster after a slow first step.")
    compile_cache: Path | None = Field(
        None,
        description="Folder in which torch.compile keeps its results for later processes; empty: compile-cache below "
        "S2V_HOME. Needed with S2V_COMPILE only.",
    )
    weights_dtype: Literal["auto", "fp8", "fp8-dynamic"] = Field(
        "auto",
        description="Weights of the blocks. auto: bf16 on a GPU; fp8: half the memory; fp8-dynamic: multiplied in fp8.",
    )
    vae_precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Precision of the VAE. bfloat16: about half of its memory (channels-last layout), other pixels.",
    )
    offload: Literal["none", "blocks"] = Field(
        "none",
        description="blocks: keep the blocks in host memory and copy each to the GPU when it is needed, for GPUs of 24 "
        "GB; 26.2 GiB of host memory per process with the 14B model. The pixels are the same.",
    )
    step_cache: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="First-block cache: skip the later blocks while the residual of the first changes by less than "
        "this share; 0: off.",
    )
    snapshot_path: Path | None = Field(None, description="Folder with the model weights in the official layout.")
    model: str = Field("wan2.2-s2v-14b", description="Entry of models.yaml for the snapshot: dimensions for planning.")
    gpu: str = Field("h100-sxm", description="Entry of gpus.yaml for cost estimates: speed, memory, price per hour.")

    engine_image: str | None = Field(
        None,
        description="Image of the pods that encode and render, with tag or digest; empty: the image in the pod "
        "templates. A change needs no new Airflow image.",
    )
    pod_patch_dir: Path | None = Field(
        None,
        description="Folder of a mounted ConfigMap whose files are merged into the pod templates: every_pod.yaml, "
        "encode_conditions.yaml, render_clip.yaml. Empty: the templates are used unchanged.",
    )
    gpu_pool_slots: int | None = Field(
        None,
        ge=0,
        description="Slots of Airflow's pool gpu (clips that render at the same time in pods); each installation and "
        "upgrade sets them. Empty: 1 at first, then as set in Airflow.",
    )
    pod_schedule_seconds: int = Field(
        3600, ge=1, description="Seconds for which a pod may wait for a node with free GPUs; then its step fails."
    )
    pod_startup_seconds: int = Field(
        900,
        ge=1,
        description="Seconds between the assignment of a pod to a node and its start, while its image is pulled.",
    )

    database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL URL of the metadata store, with user and password percent-encoded; docs/metadata.md "
        "lists its forms, also for schemas and PgBouncer.",
    )
    data_uri: str = Field("s3://s2v", description="Prefix of all jobs: s3://bucket[/prefix].")
    output_uri: str = Field("s3://s2v/output", description="Prefix of published videos.")
    s3_endpoint_url: str | None = Field(None, description="Endpoint of an S3-compatible server; empty for AWS.")
    s3_public_endpoint_url: str | None = Field(
        None, description="Endpoint of that server for browsers, used in links; empty: the same."
    )
    s3_region: str = Field("us-east-1", description="Region of the buckets.")
    s3_access_key_id: str | None = Field(None, description="Empty: the usual AWS credential chain.")
    s3_secret_access_key: SecretStr | None = Field(None, description="Empty: the usual AWS credential chain.")
    s3_checksums: Literal["always", "when_required"] = Field(
        "always",
        description="Send the checksums of S3 with requests; when_required: for servers that do not support them. The "
        "SHA-256 of each object is verified in both cases.",
    )

    video_delivery: Literal["proxy", "redirect"] = Field(
        "proxy",
        description="How players get videos on the Videos page. proxy: through Airflow's API server; redirect: from "
        "the object store, by a URL that is valid for 15 minutes. Browsers must be able to reach it.",
    )

    drop_uri: str | None = Field(
        None, description="Drop folder with incoming/, accepted/ and rejected/; empty: drop/ below S2V_DATA_URI."
    )
    allowed_input_uris: str = Field(
        "", description="Further s3://bucket/prefix of input files, separated by commas; see docs/security.md."
    )
    airflow_url: str | None = Field(
        None,
        pattern=r"^https?://[^@?#]+$",  # messages repeat it: no account, no token
        examples=["https://airflow.example.org"],
        description="URL of Airflow's API server, without an account, for commands that start and cancel jobs.",
    )
    airflow_user: str | None = Field(None, description="Account in Airflow; empty if Airflow needs none.")
    airflow_password: SecretStr | None = Field(None, description="Password of that account.")
    airflow_token: SecretStr | None = Field(None, description="Token that replaces account and password.")

    drop_settle_seconds: int = Field(
        60, ge=0, description="Seconds without a change after which a dropped folder without request.json is accepted."
    )
    drop_abandoned_seconds: int = Field(
        3600, ge=0, description="Seconds without a change after which an incomplete dropped folder is refused."
    )
    drop_queue_url: str | None = Field(
        None, description="SQS queue with the events of the drop folder; empty: the folder is only listed every minute."
    )
    max_running_jobs: int = Field(
        16,
        ge=1,
        description="Maximum number of jobs at the same time. Jobs of the drop folder and of batches wait until fewer "
        "run. Hundreds of concurrent runs slow each other down.",
    )
    approval_seconds: int = Field(
        7 * 24 * 3600,
        ge=60,
        description="Seconds for which a job with `approval` waits for a person; then it fails, and `s2v retry` asks "
        "again.",
    )
    batch_schedule: str | None = Field(None, description="Cron expression of the DAG s2v_batch; empty: no schedule.")
    batch_uri: str | None = Field(None, description="Manifest of a scheduled batch: s3://bucket/folder/name.jsonl.")

    retention_days: int = Field(
        30, ge=0, description="Days after which housekeeping deletes superseded clips, saved states and finished drops."
    )
    housekeeping_apply: bool = Field(
        False, description="Let the daily housekeeping delete; otherwise it only lists the objects."
    )

    max_clips: int = Field(240, ge=1, le=1000, description="Maximum number of clips of one job.")
    max_gpu_seconds: float | None = Field(None, gt=0, description="Maximum GPU-seconds of a plan; empty: no limit.")
    max_cost: float | None = Field(
        None, gt=0, description="Maximum cost of a plan, in the currency of S2V_GPU; empty: no limit."
    )
    max_audio_seconds: int = Field(1200, ge=1, description="Maximum length of the speech of one job.")
    max_input_bytes: int = Field(512 * 1024**2, ge=1, description="Maximum size of an input file.")
    work_dir: Path | None = Field(None, description="Scratch folder of the steps; empty: the folder of the system.")
    ffmpeg_path: Path | None = Field(None, description="Path of ffmpeg; empty: the pinned version of the package.")
    ffprobe_path: Path | None = Field(None, description="Path of ffprobe; empty: the pinned version of the package.")
    webhook_url: SecretStr | None = Field(
        None, description="Webhook of jobs whose request names none (docs/how-to/webhooks.md)."
    )
    webhook_secret: SecretStr | None = Field(
        None, description="Secret that signs messages; receivers verify them with it. Empty: nothing is sent."
    )
    webhook_allowed_hosts: str = Field(
        "", description="Hosts that requests may name as webhook, separated by commas; `.example.com`: all below it."
    )
    webhook_allow_private: bool = Field(False, description="Let webhooks call loopback, private and link-local hosts.")

    git_revision: str | None = Field(
        None, description="Git revision of this program, for manifests; set in images. Empty: that of the checkout."
    )
    image_digest: str | None = Field(
        None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        examples=[f"sha256:{64 * 'a'}"],
        description="Digest of the container image of this process, for manifests. Airflow sets it in the pods whose "
        "template names its image by digest.",
    )
    node: str | None = Field(
        None, description="Name of this machine in records of attempts; set in pods. Empty: the name of the host."
    )
    log_json: bool = Field(False, description="Write logs as JSON lines.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level of log lines.")

    @model_validator(mode="before")
    @classmethod
    def _strip(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Remove white space around each value; an empty value counts as not set."""
        bare = {name: stripped(value) if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in bare.items() if value != ""}

    @field_validator("engine_image")
    @classmethod
    def _require_one_image(cls, value: str | None) -> str | None:
        """Raise ValueError for a reference without tag and digest, which would be the image `latest`."""
        if value is not None and not _IMAGE.fullmatch(value):
            raise ValueError(
                f"{value!r} is not an image with a tag or a digest; expected registry/name:tag or "
                "registry/name@sha256:..., for example registry.example.com/s2v-engine:0.1.0"
            )
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_control_characters(cls, value: Any) -> Any:
        """Raise ValueError, without the value, for a line end or another control character inside a value."""
        if isinstance(value, str) and any(unicodedata.category(character) == "Cc" for character in value):
            raise ValueError("has a line end or another control character inside; expected one line of text")
        return value


def compile_cache_dir(settings: Settings) -> Path:
    """Return the folder in which torch.compile keeps its results."""
    return settings.compile_cache or settings.home / "compile-cache"


@cache
def load_settings() -> Settings:
    """Return the settings of this process; ConfigurationError names a bad or unknown variable."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise ConfigurationError(f"{', '.join(unknown)}: not a setting; see docs/configuration.md for the known names.")
    try:
        return Settings(_env_file=fitting_stack_env(), _env_file_encoding="utf-8")
    except ValidationError as error:
        raise ConfigurationError(f"Bad setting: {'; '.join(map(_problem, error.errors()))}.") from None


def _problem(error: ErrorDetails) -> str:
    """Return the variable, its value unless it is a text, which may hold a credential, and the expectation."""
    name, message = str(error["loc"][0]), error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch":
        message = f"expected a text such as {(Settings.model_fields[name].examples or [''])[0]}"
    texts = {"value_error", "string_pattern_mismatch", "extra_forbidden"}
    value = "" if error["type"] in texts else f" is {error['input']!r}"
    return f"{PREFIX}{name.upper()}{value}: {message}"


def config_dir(settings: Settings) -> Path:
    """Return the folder of the YAML files: of the setting, else of the checkout, else of the package."""
    package = Path(__file__).parent
    candidates = [settings.config_dir] if settings.config_dir else [package.parent / "config", package / "config"]
    for folder in candidates:
        if (folder / "presets.yaml").is_file():
            return folder
    raise ConfigurationError(f"No presets.yaml in {candidates[0]}: set S2V_CONFIG_DIR to the folder with it.")
