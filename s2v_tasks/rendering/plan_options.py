"""Options and adapters of a plan, as the engine takes them."""

from dataclasses import replace
from pathlib import Path

from s2v_tasks.engine.loading.adapters import Adapter
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.schemas.model_card import load_adapter_cards
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.settings import Settings, config_dir


def plan_options(settings: Settings, plan: Plan) -> EngineOptions:
    """Return the options of the installation, with the step cache of the plan where it states one."""
    options = EngineOptions.of(settings)
    threshold = plan.sampling.step_cache
    return options if threshold is None else replace(options, step_cache=threshold)


def plan_adapters(settings: Settings, plan: Plan) -> tuple[Adapter, ...]:
    """Return the adapters of the plan, whose files are as the catalogue and the plan say."""
    if not plan.adapters:
        return ()
    cards = load_adapter_cards(config_dir(settings))
    folder = (settings.snapshot_path or Path()).absolute().parent
    found = []
    for planned in plan.adapters:
        card = cards.get(planned.name)
        if card is None or card.sha256 != planned.sha256:
            raise ConfigurationError(
                f"adapter {planned.name} has another digest in adapters.yaml than in the plan: expected "
                f"{planned.sha256[:12]}.... Restore the entry, or rerun the job"
            )
        adapter = Adapter(card.name, folder / card.path, planned.strength, card.sha256, card.alpha, card.least_matched)
        adapter.check_file()
        found.append(adapter)
    return tuple(found)
