"""Check the environment of a render process, and the cache of torch.compile."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.engine import check_compile_cache, use_compile_cache
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.settings import compile_cache_dir, load_settings

NAMES = ("OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")
# `s2v render-clip` with its step replaced. It prints what the environment was when torch was first asked for, and what
# the compiler made of it.
RENDER = f"""
import json, os, sys

class Notes:
    found = {{}}
    def find_spec(self, name, *_):
        if name == "torch" and not self.found:
            self.found |= {{name: os.environ.get(name) for name in {NAMES}}}
        return None

sys.meta_path.insert(0, Notes())
from s2v_tasks.cli import main
from s2v_tasks.runtime import context

def run_step(body, **_):
    from torch._inductor import config
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    return Notes.found | {{"threads": config.compile_threads, "folder": cache_dir(), "body": body.__module__}}

context.run_step = run_step
sys.argv[1:] = ["render-clip", "--job-id", "a", "--clip-index", "0"]
main()
"""
# A compiled step; prints how often the compiler found its result in the cache and how often it had to compile.
COMPILED_STEP = """
import sys
from pathlib import Path

from s2v_tasks.engine import use_compile_cache

use_compile_cache(Path(sys.argv[1]))
import torch
from torch._dynamo.utils import counters

from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.worker import Worker
from s2v_tasks.verification.bench.step import StepBench, bench_step

config = S2VConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=16, text_dim=12, text_len=8, audio_dim=6,
    audio_inject_layers=(1,),
)
bench = StepBench(config, (2, 8, 8), repeats=1, guided=False, compiled=True, with_reference=False)
bench_step(bench, Worker(0, 1, torch.device("cpu")))
found = counters["inductor"]
print(found["fxgraph_cache_hit"], found["fxgraph_cache_miss"], found["fxgraph_cache_bypass"])
"""


def environment(**variables: str) -> dict[str, str]:
    own = {"PYTORCH_CUDA_ALLOC_CONF", *NAMES}
    return {name: value for name, value in os.environ.items() if name not in own} | variables


def render(tmp_path: Path, **variables: str) -> dict[str, Any]:
    """Run a render process whose home is `tmp_path`, and return its environment."""
    done = subprocess.run(
        [sys.executable, "-c", RENDER],
        env=environment(S2V_HOME=str(tmp_path), **variables),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_render_process_sets_the_environment_before_torch(tmp_path: Path) -> None:
    """Allocator, compiler threads, compile cache and waiting threads are set before torch reads them."""
    found = render(tmp_path)
    cache = str(tmp_path / "compile-cache")
    threads = min(4, len(os.sched_getaffinity(0)))
    assert found["body"] == "s2v_tasks.steps.render_clip"
    assert [found[name] for name in NAMES] == ["passive", "expandable_segments:True", cache, str(threads)]
    assert (found["threads"], found["folder"]) == (threads, cache)


def test_variables_of_the_user_are_kept(tmp_path: Path) -> None:
    """Variables of torch override the settings; the older name of the allocator's variable counts, too."""
    chosen = {
        "OMP_WAIT_POLICY": "active",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "mine"),
    }
    found = render(tmp_path, PYTORCH_CUDA_ALLOC_CONF="backend:native", S2V_COMPILE_CACHE="/kept", **chosen)
    assert {name: found[name] for name in NAMES} == chosen | {"PYTORCH_ALLOC_CONF": None}
    assert (found["threads"], found["folder"]) == (1, str(tmp_path / "mine"))


def test_the_folder_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2V_COMPILE_CACHE names the folder; without it, the folder is below S2V_HOME."""
    monkeypatch.setenv("S2V_HOME", "/home")
    load_settings.cache_clear()
    assert compile_cache_dir(load_settings()) == Path("/home/compile-cache")
    monkeypatch.setenv("S2V_COMPILE_CACHE", "/kept")
    load_settings.cache_clear()
    assert compile_cache_dir(load_settings()) == Path("/kept")


@pytest.mark.skipif(" " in sys.prefix, reason="on a CPU, torch gives the linker its path without quotes")
def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    """The second process loads all graphs of a step from the folder that the first process has filled."""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", COMPILED_STEP, str(tmp_path / "cache")],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    )
    hits, misses, bypassed = map(int, first)
    assert (hits, bypassed) == (0, 0)
    assert misses > 0
    assert second == [str(misses), "0", "0"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file at the path of the folder fails the render with the setting to change."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    (tmp_path / "file").touch()
    use_compile_cache(tmp_path / "file")
    with pytest.raises(ConfigurationError, match=r"compile cache .*/file .* S2V_COMPILE_CACHE to one"):
        check_compile_cache()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "new" / "folder"))
    check_compile_cache()
    assert (tmp_path / "new" / "folder").is_dir()
