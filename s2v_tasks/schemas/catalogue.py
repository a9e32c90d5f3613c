"""The presets and adapters of an installation, which requests name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.model_card import AdapterCard, find_adapter, load_adapter_cards
from s2v_tasks.schemas.preset import Preset, find_preset, load_presets
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import AdapterChoice


@dataclass(frozen=True)
class Catalogue:
    """Presets and adapters by name."""

    presets: Mapping[str, Preset]
    adapters: Mapping[str, AdapterCard]

    def check(self, request: Request) -> None:
        """Raise PermanentError with the known names if the request names an unknown preset or adapter."""
        if problems := [*self.problems(request.preset, request.adapters or ())]:
            raise PermanentError(" ".join(problems))

    def problems(self, preset: str, adapters: Sequence[AdapterChoice] = ()) -> Iterator[str]:
        """Yield a sentence for each name that is unknown."""
        try:
            find_preset(self.presets, preset)
        except PermanentError as error:
            yield str(error)
        for choice in adapters:
            try:
                find_adapter(self.adapters, choice.name)
            except PermanentError as error:
                yield str(error)


EMPTY = Catalogue({}, {})


def load_catalogue(config_dir: Path) -> Catalogue:
    """Return the catalogue of a configuration folder; ConfigurationError if one of its files is not valid."""
    return Catalogue(load_presets(config_dir), load_adapter_cards(config_dir))
