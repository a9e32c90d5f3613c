"""A snapshot: the weights on disk in the official layout (spec a), from which each network is loaded when needed."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2v_tasks.engine.loading.files import fault_of
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.log import get_logger

if TYPE_CHECKING:
    import torch

    from s2v_tasks.engine.acceleration.fp8 import Float8Weights
    from s2v_tasks.engine.encoders.audio_encoder import AudioEncoder
    from s2v_tasks.engine.encoders.text_encoder import TextEncoder
    from s2v_tasks.engine.encoders.vae import Vae
    from s2v_tasks.engine.loading.adapters import Adapter, AdapterReport
    from s2v_tasks.engine.models.config import S2VConfig
    from s2v_tasks.engine.models.transformer import S2VTransformer
    from s2v_tasks.engine.options import VaePrecision

CONFIG_FILE = "config.json"
TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"
TRANSFORMER_INDEX_FILE = "diffusion_pytorch_model.safetensors.index.json"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
TOKENIZER_FOLDER, TOKENIZER_FILE = "google/umt5-xxl", "tokenizer.json"
AUDIO_ENCODER_FOLDER = "wav2vec2-large-xlsr-53-english"
_AUDIO_ENCODER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Names of single files that are published for node editors; a snapshot may have them instead of the official ones.
_COMPANIONS = {
    "transformer": ("wan2.2_s2v_14B_bf16.safetensors", "wan2.2_s2v_14B_fp8_scaled.safetensors"),
    "text_encoder": ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "umt5_xxl_fp16.safetensors"),
    "vae": ("wan_2.1_vae.safetensors",),
    "audio_encoder": ("wav2vec2_large_english_fp16.safetensors",),
}
_MAX_FAULTS = 3
_COMPLETE = "`s2v snapshot inspect` shows the command that completes it; `s2v snapshot init-tiny` makes a tiny one"
_REMEDY = "download the whole snapshot again, or make a tiny one with `s2v snapshot init-tiny`"


@dataclass(frozen=True)
class Snapshot:
    """A complete folder of weights. The `load_` methods load the networks."""

    path: Path
    files: tuple[tuple[str, Path], ...] = ()  # components in other places: name and file, or folder of a tokenizer

    @classmethod
    def open(cls, path: Path, files: Mapping[str, Path] | None = None) -> "Snapshot":
        """Check that every file exists and is whole; `files` are components outside of the folder `path`.

        Raises ConfigurationError for a config.json of another model, and with all missing or damaged files.
        """
        if not path.is_dir():
            raise ConfigurationError(f"snapshot {path} is not a folder; {_REMEDY}")
        snapshot = cls(path, tuple(sorted((files or {}).items())))
        if snapshot.config_path.is_file():
            snapshot.config()  # of another model: that is said before its files are missed
        missing, faults = snapshot.missing_files(), [" ".join(item) for item in snapshot.damaged_files().items()]
        if missing or faults:
            more = [f"and {len(faults) - _MAX_FAULTS} more files"] if len(faults) > _MAX_FAULTS else []
            problems = [*([f"lacks {', '.join(missing)}"] if missing else []), *faults[:_MAX_FAULTS], *more]
            raise ConfigurationError(f"snapshot {path}: {'; '.join(problems)}. {_COMPLETE}")
        return snapshot

    def missing_files(self) -> list[str]:
        """Return the names of the files that the snapshot lacks."""
        return [self._shown(file) for file in self._needed_files() if not file.is_file() and not file.is_symlink()]

    def damaged_files(self) -> dict[str, str]:
        """Return what is wrong with each needed file that is not missing and cannot be loaded; see `files.fault_of`."""
        present = [file for file in self._needed_files() if file.is_file() or file.is_symlink()]
        found = {self._shown(file): fault_of(file) for file in present}
        return {name: fault for name, fault in found.items() if fault}

    def _needed_files(self) -> list[Path]:
        """Return the files without which the networks cannot be loaded."""
        audio = [self.audio_encoder_folder / CONFIG_FILE, self.audio_encoder_path]
        texts = [self.text_encoder_path, self.tokenizer_folder / TOKENIZER_FILE]
        shards, index = self.transformer_shards(), self.path / TRANSFORMER_INDEX_FILE
        # The release has no single file: its index names the shards.
        if shards == [self.path / TRANSFORMER_FILE] and not shards[0].is_file():
            shards = [index]
        return [self.config_path, *texts, self.vae_path, *audio, *shards]

    @property
    def config_path(self) -> Path:
        """Return the path of the transformer's config.json."""
        return self._component("config", self.path / CONFIG_FILE)

    @property
    def text_encoder_path(self) -> Path:
        """Return the file of the text encoder."""
        return self._component("text_encoder", self.path / TEXT_ENCODER_FILE)

    @property
    def tokenizer_folder(self) -> Path:
        """Return the folder of the tokenizer."""
        return self._component("tokenizer", self.path / TOKENIZER_FOLDER)

    @property
    def vae_path(self) -> Path:
        """Return the file of the VAE."""
        return self._component("vae", self.path / VAE_FILE)

    @property
    def audio_encoder_folder(self) -> Path:
        """Return the folder with the config.json of the audio encoder."""
        return self.path / AUDIO_ENCODER_FOLDER

    @property
    def audio_encoder_path(self) -> Path:
        """Return the file of the audio encoder."""
        in_folder = [self.audio_encoder_folder / name for name in _AUDIO_ENCODER_WEIGHTS]
        official = next((path for path in in_folder if path.is_file()), in_folder[0])
        return self._component("audio_encoder", official)

    def _component(self, name: str, official: Path) -> Path:
        """Return the path of a component: the configured one, the official one, or a companion in the folder."""
        configured = dict(self.files).get(name)
        if configured is not None:
            return configured
        candidates = (official, *(self.path / companion for companion in _COMPANIONS.get(name, ())))
        return next((path for path in candidates if path.exists()), official)

    def _shown(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix() if path.is_relative_to(self.path) else str(path)

    def config(self) -> "S2VConfig":
        """Return the dimensions of the transformer; ConfigurationError for a config.json of another model."""
        from s2v_tasks.engine.models.config import S2VConfig

        return S2VConfig.from_json(_read_json(self.config_path), source=str(self.config_path))

    def check_model(self, name: str, dimensions: Mapping[str, Any]) -> None:
        """Raise ConfigurationError unless config.json has the `dimensions` of the model `name`, which may be a part."""
        config = asdict(self.config())
        wrong = [
            f"{field}={config[field]!r} instead of {expected!r}"
            for field, expected in dimensions.items()
            if field in config and config[field] != expected
        ]
        if wrong:
            raise ConfigurationError(
                f"snapshot {self.path} is not {name}: its {CONFIG_FILE} has {', '.join(wrong)}. Let S2V_SNAPSHOT_PATH "
                "lead to the weights of that model, or set S2V_MODEL to the model that these weights are."
            )

    def transformer_shards(self) -> list[Path]:
        """Return the files of the transformer's weights: those of the index, or the single file without an index."""
        index_path = self.path / TRANSFORMER_INDEX_FILE
        if (index := self._index()) is None:
            return [self._component("transformer", self.path / TRANSFORMER_FILE)]
        weight_map = index.get("weight_map")
        names = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ConfigurationError(f"{index_path} does not name weight files in its own folder; {_REMEDY}")
        return [self.path / name for name in sorted(set(names))]

    def weight_files(self) -> list[Path]:
        """Return every file that affects the results of the networks, sorted; without documentation and assets."""
        tokenizer = (path for path in self.tokenizer_folder.rglob("*") if not path.name.startswith("."))
        audio = (self.audio_encoder_folder / name for name in (CONFIG_FILE, "preprocessor_config.json"))
        candidates = {
            self.config_path,
            self.path / TRANSFORMER_INDEX_FILE,
            self.text_encoder_path,
            self.vae_path,
            *self.transformer_shards(),
            *tokenizer,
            *audio,
            self.audio_encoder_path,
            *(self.audio_encoder_folder / name for name in _AUDIO_ENCODER_WEIGHTS),
        }
        return sorted(path for path in candidates if path.is_file())

    def build_transformer(self) -> "S2VTransformer":
        """Return the transformer of config.json on the meta device, without weights; shard it, then fill it."""
        import torch

        from s2v_tasks.engine.models.config import unknown_fields
        from s2v_tasks.engine.models.transformer import S2VTransformer

        if unknown := unknown_fields(_read_json(self.config_path)):
            get_logger().warning("config_has_unknown_fields", file=str(self.config_path), fields=unknown)
        with torch.device("meta"):
            return S2VTransformer(self.config())

    def check_transformer(self) -> None:
        """Raise the errors of `fill_transformer` that config.json, index and headers show; reads no weights."""
        from s2v_tasks.engine.loading.shards import check_shards

        check_shards(
            self.build_transformer(),
            self.transformer_shards(),
            index=self._index(),
            source=f"the transformer in {self.path}",
        )

    def fill_transformer(
        self,
        transformer: "S2VTransformer",
        device: "torch.device | str",
        dtype: "torch.dtype",
        *,
        convert: "Callable[[str, torch.Tensor], torch.Tensor] | None" = None,
        float8: "Float8Weights | None" = None,
        adapters: "Sequence[Adapter]" = (),
        num_threads: int | None = None,
    ) -> "tuple[AdapterReport, ...]":
        """Read the weights of the result of `build_transformer`; if FSDP has sharded it, only this rank's shards.

        `adapters` are merged into the weights; the result reports the matching modules of each. `convert` gets the key
        and value of each weight and returns the value to keep; `float8` keeps float8 weights of the files unchanged.
        `num_threads` threads read at a time (None: chosen for this machine). On the CPU, weights that already have
        `dtype` stay mapped to their files. Raises ConfigurationError if keys or shapes do not match config.json, if
        index and shards differ, or if a shard is damaged; TransientError if a shard cannot be read.
        """
        from s2v_tasks.engine.loading.adapters import AdapterMerge
        from s2v_tasks.engine.loading.shards import Conversion, load_shards

        shapes = {key: weight.shape for key, weight in transformer.state_dict().items()}
        with closing(AdapterMerge(adapters, shapes)) as merge:
            load_shards(
                transformer,
                self.transformer_shards(),
                Conversion(dtype, convert, float8, merge),
                device=device,
                num_threads=num_threads,
                index=self._index(),
                source=f"the transformer in {self.path}",
            )
        return merge.reports

    def _index(self) -> dict[str, Any] | None:
        """Return the content of the index of the shards; None if the transformer is a single file."""
        path = self.path / TRANSFORMER_INDEX_FILE
        return _read_json(path) if path.is_file() and "transformer" not in dict(self.files) else None

    def load_vae(self, device: "torch.device | str", precision: "VaePrecision" = "float32") -> "Vae":
        """Load the VAE, which computes in `precision`."""
        from s2v_tasks.engine.encoders.vae import Vae, key_pairs
        from s2v_tasks.engine.loading.layouts import invert

        state = invert(key_pairs(), self._read_state(self.vae_path, device), "encoder.conv_in.weight")
        return Vae.from_state_dict(state, device, precision)

    def load_text_encoder(self, device: "torch.device | str") -> "TextEncoder":
        """Return the text encoder with its tokenizer, in the dtype of its file; on the CPU its weights stay mapped.

        Weights in float16 become bfloat16, the dtype of the release, because the feed-forward overflows in float16.
        """
        import torch

        from s2v_tasks.engine.encoders.text_encoder import TextEncoder, key_pairs
        from s2v_tasks.engine.loading.layouts import invert

        state = self._read_state(self.text_encoder_path, device)
        state.pop("encoder.embed_tokens.weight", None)  # equal to shared.weight
        state = {key: value.bfloat16() if value.dtype == torch.float16 else value for key, value in state.items()}
        num_layers = len({key.split(".")[2] for key in state if key.startswith("encoder.block.")})
        return TextEncoder.from_state_dict(
            invert(key_pairs(num_layers), state, "shared.weight"),
            self.tokenizer_folder,
            text_len=self.config().text_len,
            device=device,
        )

    def load_audio_encoder(self, device: "torch.device | str") -> "AudioEncoder":
        """Return the audio encoder, float32."""
        from s2v_tasks.engine.encoders.audio_encoder import AudioEncoder

        config = _read_json(self.audio_encoder_folder / CONFIG_FILE)
        return AudioEncoder.from_state_dict(self._read_state(self.audio_encoder_path, device), config, device)

    def _read_state(self, path: Path, device: "torch.device | str") -> "dict[str, torch.Tensor]":
        """Return the weights of a .pth or safetensors file; float8 weights with scales become bfloat16."""
        import torch

        from s2v_tasks.engine.loading.layouts import read_safetensors
        from s2v_tasks.engine.loading.weights import read_pth

        if path.suffix == ".safetensors":
            return read_safetensors(path, device, torch.bfloat16)
        return read_pth(path, device)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON ({error}); {_REMEDY}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} holds a {type(content).__name__} instead of an object; {_REMEDY}")
    return content
