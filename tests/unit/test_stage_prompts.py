"""How many prompts a stage takes, in all or by domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.sampling import SamplingConfig
from dasd_megatron.curation.selection import SelectStepConfig
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.sampling.prompts import PROMPTS
from dasd_megatron.sampling.sample import SampleConfig, SampleStep
from dasd_megatron.utils.errors import UserError
from tests.conftest import ROOT, TOY

WRONG = "stages.0.prompts: give a positive whole number, or one for each domain: {math: 1000}"


@pytest.fixture
def shards(make_context: Any, tmp_path: Path) -> Any:
    """How many shards of one prompt each the step `sample` makes with this limit."""
    folder = tmp_path / "prompts"
    domains = ["math", "code", "math", None, "math", "code"]
    rows = [{"uuid": str(n), "input": f"{n}?", "domain": domain, "answer": None} for n, domain in enumerate(domains)]
    prompts = ArtifactWriter(folder, {"step": "prompts_train"})
    prompts.write_shard("prompts", 0, pa.Table.from_pylist(rows, PROMPTS))
    prompts.finish(counts={"prompts": len(rows)})

    def count(**config: Any) -> int:
        settings = SampleConfig(
            model=ModelConfig(model=TOY / "teacher"),
            sampling=SamplingConfig(prompts_per_shard=1),
            temperature=1.0,
            seed=0,
            **config,
        )
        context = make_context(settings, {"prompts": folder}, "sample_first")
        return SampleStep().shard_count(context)

    return count


def test_a_limit_takes_the_first_prompts(shards: Any) -> None:
    assert shards() == 6
    assert shards(limit=4) == 4
    assert shards(limit=100) == 6  # at most
    assert shards(limit={"math": 2, "code": 1}) == 3


def test_prompts_by_domain_keep_their_order() -> None:
    from dasd_megatron.sampling.asked_prompts import _of_domains

    prompts = [{"uuid": n, "domain": "ab"[n % 2]} for n in range(8)]
    assert [row["uuid"] for row in _of_domains("step", prompts, {"b": 1, "a": 3})] == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ("math", r"prompts.math=9, but its problems have 3 of that domain \(it has: math 3, code 2, none 1\)"),
        ("maths", r"prompts.maths=9, but its problems have 0 of that domain"),
    ],
)
def test_too_few_of_a_domain(shards: Any, domain: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"sample_first: the stage's {message}"):
        shards(limit={domain: 9})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.2.prompts=10", "unknown key 'stages.2.prompts'"),
        ("stages.0.prompts=0", f"{WRONG}, not 0"),
        ("stages.0.prompts={math: many}", WRONG),
        ("stages.0.prompts={}", WRONG),
    ],
)
def test_recipe_refusals(override: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe(TOY / "recipe.yaml", [override])
    assert message in str(raised.value)


def test_only_a_stage_that_says_how_many_gets_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plain, limited = (
        build_steps(load_recipe(TOY / "recipe.yaml", overrides)) for overrides in ([], ["stages.1.prompts={math: 10}"])
    )
    configs = [steps["sample_high_temperature"].config for steps in (plain, limited)]
    assert [config.limit for config in configs if isinstance(config, SampleConfig)] == [None, {"math": 10}]
    changed = {name for name in plain if plain[name].key != limited[name].key}
    assert "sample_high_temperature" in changed
    assert not {"sample_low_temperature", "train_low_temperature", "reference"} & changed


def test_a_stage_may_have_its_own_problems_and_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    own = ["stages.0.source={path: examples/toy/validation.jsonl, limit: 5}", "stages.0.selection={total: {sum: 4}}"]
    plain, changed = (build_steps(load_recipe(TOY / "recipe.yaml", overrides)) for overrides in ([], own))
    assert set(changed) - set(plain) == {"prompts_low_temperature"}
    assert changed["sample_low_temperature"].source("prompts").name == "prompts_low_temperature"
    assert changed["sample_high_temperature"].source("prompts").name == "prompts_train"
    assert set(changed["prompts_low_temperature"].inputs) == {"source", "held_out_arithmetic", "teacher", "student"}
    assert changed["prompts_low_temperature"].config.budgets == {"stages.0.selection.total": ["sum"]}
    assert not changed["prompts_train"].config.budgets
    low, high = (changed[f"select_{stage}"].config for stage in ("low_temperature", "high_temperature"))
    assert isinstance(low, SelectStepConfig)
    assert isinstance(high, SelectStepConfig)
    assert (low.selection.total, high.selection.total) == ({"sum": 4}, None)
    assert low.selection.model_copy(update={"total": None}) == high.selection


def test_a_stages_own_problems_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"stages\.1\.source\.path: absent\.jsonl: no such file"):
        build_steps(load_recipe(TOY / "recipe.yaml", ["stages.1.source={path: absent.jsonl}"]))
