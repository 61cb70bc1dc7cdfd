"""Every lazy reference of every installed plugin leads somewhere, and shape checks are on."""

import dataclasses
import os

import pytest
import torch
from mim_core.data.source import DataSource
from mim_core.host import kinds
from mim_core.host.loading import installed
from mim_core.methods.method import Method
from mim_core.parts.decoder import Decoder
from mim_core.parts.encoder import Encoder
from mim_core.parts.layout import Layout, take
from mim_core.parts.masker import Masker
from mim_core.parts.scorer import Scorer
from mim_core.parts.target import Target
from mim_core.parts.teacher import Teacher
from mim_core.parts.tokenizer import Tokenizer
from mim_core.recipes.config import RunConfig
from mim_core.recipes.resolve import load_recipe
from mim_core.recipes.toml import from_toml, to_toml

BASES = {
    "tokenizers": Tokenizer,
    "maskers": Masker,
    "targets": Target,
    "encoders": Encoder,
    "decoders": Decoder,
    "teachers": Teacher,
    "scorers": Scorer,
    "methods": Method,
    "data": DataSource,
}
ENTRIES = installed().entries
NAMES = [f"{entry.kind}-{entry.full_name}" for entry in ENTRIES]


def test_no_plugin_failed():
    assert not [record.failure for record in installed().plugins if record.failure]
    assert {"core", "image"} <= {record.name for record in installed().plugins}


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_reference_resolves(entry):
    part = entry.resolve()
    if entry.kind in BASES:
        assert issubclass(part, BASES[entry.kind])
        assert dataclasses.is_dataclass(part.Config)
        assert part.Config.__dataclass_params__.frozen
        part.Config()  # every option has a default
    elif entry.kind == "recipes":
        assert isinstance(part(), RunConfig)
        assert isinstance(entry.resolve_twin()(), RunConfig)
    else:
        assert callable(part)
    assert entry.card.summary.endswith(".")


@pytest.mark.parametrize("name", [entry.full_name for entry in ENTRIES if entry.kind == "recipes"])
@pytest.mark.parametrize("twin", [False, True], ids=["whole", "twin"])
def test_recipe_survives_toml(name, twin):
    run = load_recipe(name, installed(), twin=twin)
    again = from_toml(to_toml(run, installed()), installed())
    assert again.parts == run.parts
    assert (again.train, again.evaluate, again.recipe) == (run.train, run.evaluate, run.recipe)


@pytest.mark.skipif(bool(os.environ.get("MIM_NO_SHAPE_CHECKS")), reason="shape checks are switched off")
def test_shape_annotations_are_checked():
    import jaxtyping

    with pytest.raises(jaxtyping.TypeCheckError):
        take(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))  # ids are [R, K]
    with pytest.raises(jaxtyping.TypeCheckError):
        Layout(count=2, valid=torch.ones(1, 2))  # valid is bool


def test_the_table_of_kinds_names_the_base_class_of_each():
    assert {kind.plural: kinds.base_of(kind.plural) for kind in kinds.TABLE if kind.base} == BASES
    for kind in kinds.TABLE:
        base = kinds.base_of(kind.plural)
        assert all(callable(getattr(base, name)) for name in kind.required)
