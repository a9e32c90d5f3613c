"""The model cards and presets of `config/`, and plans that are made with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2v_tasks.planning.chains import SAMPLE_RATE, Samples
from s2v_tasks.planning.installation import Installation
from s2v_tasks.planning.memory import ONE_GPU
from s2v_tasks.planning.planner import PlanInputs, make_plan
from s2v_tasks.schemas.catalogue import Catalogue
from s2v_tasks.schemas.model_card import GpuCard, ModelCard, load_gpu_card, load_model_card
from s2v_tasks.schemas.plan import InputFacts, Plan, SpeechFacts
from s2v_tasks.schemas.preset import load_presets
from s2v_tasks.schemas.request_parsing import parse_request

CONFIG = Path(__file__).parents[3] / "config"

PlanOf = Callable[..., Plan]
SpeechOf = Callable[..., Samples]
FIELDS = {"image_uri": "s3://bucket/a.png", "audio_uri": "s3://bucket/a.wav", "prompt": "A woman speaks."}


@pytest.fixture(scope="session")
def model_14b() -> ModelCard:
    return load_model_card(CONFIG, "wan2.2-s2v-14b")


@pytest.fixture(scope="session")
def h100() -> GpuCard:
    return load_gpu_card(CONFIG, "h100-sxm")


@pytest.fixture(scope="session")
def plan_of(model_14b: ModelCard, h100: GpuCard) -> PlanOf:
    """Makes a plan for a number of samples at 16 kHz; keywords are fields of the request, or replace an input."""

    def plan(num_samples: int, **changes: Any) -> Plan:
        given: dict[str, Any] = {"job_id": "job-1", "image_size": (832, 480), "samples": None, "inputs": InputFacts()}
        given |= {name: changes.pop(name) for name in list(changes) if name in given}
        site: dict[str, Any] = {"model": model_14b, "gpu": h100, "max_clips": 240, "setup": ONE_GPU}
        site |= {name: changes.pop(name) for name in list(changes) if name in site}
        catalogue = Catalogue(load_presets(CONFIG), changes.pop("catalogue", {}))
        speech = SpeechFacts(num_samples=num_samples, sample_rate=16000)
        inputs = PlanInputs(speech, given["image_size"], given["samples"], given["inputs"])
        return make_plan(parse_request(FIELDS | changes), given["job_id"], inputs, Installation(catalogue, **site))

    return plan


@pytest.fixture(scope="session")
def speech() -> SpeechOf:
    """Makes noise of the given (seconds, level in dB of full scale) pieces; -120 dB is digital silence."""

    def make(*stretches: tuple[float, float]) -> Samples:
        noise = np.random.default_rng(7)
        parts = [
            noise.standard_normal(round(seconds * SAMPLE_RATE)) * (10 ** (level / 20) if level > -120 else 0.0)
            for seconds, level in stretches
        ]
        return np.concatenate(parts).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def sentences(speech: SpeechOf) -> Samples:
    """20 s of speech: sentences end at 6 s and at 12.75 s, each followed by a pause of 0.75 s."""
    return speech((6, -20), (0.75, -70), (6, -20), (0.75, -70), (6.5, -20))


def seconds(value: float) -> int:
    return round(value * 16000)
