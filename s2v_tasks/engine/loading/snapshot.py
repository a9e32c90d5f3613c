"""A snapshot: the weights on disk in the official layout (spec a), from which each network is loaded when needed."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2v_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    from s2v_tasks.engine.encoders.audio_encoder import AudioEncoder
    from s2v_tasks.engine.encoders.text_encoder import TextEncoder
    from s2v_tasks.engine.encoders.vae import Vae
    from s2v_tasks.engine.loading.adapters import Adapter, AdapterReport
    from s2v_tasks.engine.models.transformer import S2VTransformer
    from s2v_tasks.engine.options import VaePrecision

CONFIG_FILE = "config.json"
TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"
TRANSFORMER_INDEX_FILE = "diffusion_pytorch_model.safetensors.index.json"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
AUDIO_ENCODER_FOLDER = "wav2vec2-large-xlsr-53-english"
_AUDIO_ENCODER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_REMEDY = "download the whole snapshot again, or make a tiny one with `s2v snapshot init-tiny`"


@dataclass(frozen=True)
class Snapshot:
    """A complete folder of weights. Nothing is loaded before a `load_` method is called."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> "Snapshot":
        """Check that every file is there.

        Raises ConfigurationError that names all missing files.
        """
        if not path.is_dir():
            raise ConfigurationError(f"snapshot {path} is not a folder; {_REMEDY}")
        snapshot = cls(path)
        expected = [CONFIG_FILE, TEXT_ENCODER_FILE, VAE_FILE, f"{AUDIO_ENCODER_FOLDER}/{CONFIG_FILE}"]
        missing = [name for name in expected if not (path / name).is_file()]
        if not any((path / AUDIO_ENCODER_FOLDER / name).is_file() for name in _AUDIO_ENCODER_WEIGHTS):
            missing.append(f"{AUDIO_ENCODER_FOLDER}/{_AUDIO_ENCODER_WEIGHTS[0]}")
        if not any((path / TOKENIZER_FOLDER).glob("tokenizer*")):
            missing.append(f"{TOKENIZER_FOLDER}/tokenizer.json")
        missing += [shard.name for shard in snapshot.transformer_shards() if not shard.is_file()]
        if missing:
            raise ConfigurationError(f"snapshot {path} lacks {', '.join(missing)}; {_REMEDY}")
        return snapshot

    def check_model(self, name: str, dimensions: Mapping[str, Any]) -> None:
        """Raise ConfigurationError unless config.json has the `dimensions` of the model `name`, which may be a part."""
        from s2v_tasks.engine.models.config import S2VConfig

        config = asdict(S2VConfig.from_json(_read_json(self.path / CONFIG_FILE)))
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
        if not index_path.is_file():
            return [self.path / TRANSFORMER_FILE]
        names = set(_read_json(index_path).get("weight_map", {}).values())
        if not names or any(Path(name).name != name for name in names):
            raise ConfigurationError(f"{index_path} names no weight files in its own folder; {_REMEDY}")
        return [self.path / name for name in sorted(names)]

    def weight_files(self) -> list[Path]:
        """Return every file that decides what the networks compute, sorted; without documentation and assets."""
        tokenizer = (path for path in (self.path / TOKENIZER_FOLDER).rglob("*") if not path.name.startswith("."))
        audio_names = (CONFIG_FILE, "preprocessor_config.json", *_AUDIO_ENCODER_WEIGHTS)
        single = (CONFIG_FILE, TRANSFORMER_INDEX_FILE, TEXT_ENCODER_FILE, VAE_FILE)
        candidates = [
            *(self.path / name for name in single),
            *self.transformer_shards(),
            *tokenizer,
            *(self.path / AUDIO_ENCODER_FOLDER / name for name in audio_names),
        ]
        return sorted(path for path in candidates if path.is_file())

    def build_transformer(self) -> "S2VTransformer":
        """Return the transformer of config.json on the meta device, without weights: to be sharded, then filled."""
        import torch

        from s2v_tasks.engine.models.config import S2VConfig
        from s2v_tasks.engine.models.transformer import S2VTransformer

        config = S2VConfig.from_json(_read_json(self.path / CONFIG_FILE))
        with torch.device("meta"):
            return S2VTransformer(config)

    def fill_transformer(
        self,
        transformer: "S2VTransformer",
        device: "torch.device | str",
        dtype: "torch.dtype",
        *,
        convert: "Callable[[str, torch.Tensor], torch.Tensor] | None" = None,
        adapters: "Sequence[Adapter]" = (),
        num_threads: int | None = None,
    ) -> "tuple[AdapterReport, ...]":
        """Read the weights of `build_transformer`'s result; where FSDP has sharded it, only this rank's shards.

        `adapters` are merged into the weights; returns what of each of them fits. `convert` is called with key and
        value of each weight and gives what is kept of it. `num_threads`
        read at a time (None: as many as suit this machine). On the CPU, weights that are in `dtype` already stay mapped
        to their files. Raises ConfigurationError when keys or shapes do not belong to config.json, when index and
        shards differ, or when a shard is damaged; TransientError when a shard cannot be read.
        """
        from s2v_tasks.engine.loading.adapters import AdapterMerge
        from s2v_tasks.engine.loading.shards import load_shards

        index_path = self.path / TRANSFORMER_INDEX_FILE
        shapes = {key: weight.shape for key, weight in transformer.state_dict().items()}
        with closing(AdapterMerge(adapters, shapes)) as merge:
            load_shards(
                transformer,
                self.transformer_shards(),
                device=device,
                dtype=dtype,
                convert=convert,
                merge=merge,
                num_threads=num_threads,
                index=_read_json(index_path) if index_path.is_file() else None,
                source=f"the transformer in {self.path}",
            )
        return merge.reports

    def load_vae(self, device: "torch.device | str", precision: "VaePrecision" = "float32") -> "Vae":
        """Load the VAE, which computes in `precision`."""
        from s2v_tasks.engine.encoders.vae import Vae
        from s2v_tasks.engine.loading.weights import read_pth

        return Vae.from_state_dict(read_pth(self.path / VAE_FILE, device), device, precision)

    def load_text_encoder(self, device: "torch.device | str") -> "TextEncoder":
        """Return the text encoder with its tokenizer, in the dtype of its file; on the CPU its weights stay mapped."""
        from s2v_tasks.engine.encoders.text_encoder import TextEncoder
        from s2v_tasks.engine.loading.weights import read_pth
        from s2v_tasks.engine.models.config import S2VConfig

        return TextEncoder.from_state_dict(
            read_pth(self.path / TEXT_ENCODER_FILE, device),
            self.path / TOKENIZER_FOLDER,
            text_len=S2VConfig.from_json(_read_json(self.path / CONFIG_FILE)).text_len,
            device=device,
        )

    def load_audio_encoder(self, device: "torch.device | str") -> "AudioEncoder":
        """The audio encoder, float32."""
        from s2v_tasks.engine.encoders.audio_encoder import AudioEncoder

        return AudioEncoder.from_folder(self.path / AUDIO_ENCODER_FOLDER, device)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON ({error}); {_REMEDY}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} holds a {type(content).__name__} instead of an object; {_REMEDY}")
    return content
