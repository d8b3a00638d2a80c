from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.catalogue import CATALOGUE
from lmlab.config.check import check_value, from_flat
from lmlab.config.grammar import parsed
from lmlab.config.keys import CHOICES, RunConfig, SweepConfig, keys_of
from lmlab.errors import UserError, printable

ROWS = [row for rows in CATALOGUE.values() for row in rows.values()]
PARTS = dict.fromkeys((RunConfig, *(row.config for row in ROWS)))
FRACTION = st.floats(0, 0.4)


@st.composite
def changes(draw):
    """Values that are all right, for some of the keys."""
    keys = {
        "seed": st.integers(0, 2**32 - 1),
        "max_steps": st.integers(1, 10**9),
        "max_minutes": st.floats(0.01, 1e6),
        "n_layer": st.integers(1, 100),
        "dropout": st.floats(0, 0.99),
        "bias": st.booleans(),
        "beta1": FRACTION,
        "schedule": st.sampled_from(["cosine", "constant"]),
        "val_fraction": FRACTION,
        "test_fraction": FRACTION,
        "lr": st.floats(1e-3, 10),
        "min_lr": st.none() | st.floats(0, 1e-3),
        "name": st.text("aZ09_é", min_size=1),
    }
    return {key: draw(keys[key]) for key in draw(st.sets(st.sampled_from(sorted(keys))))}


def values_of(config):
    return {key: value for key, value in config.flat().items() if key not in CHOICES}


@given(changes())
def test_a_flat_configuration_is_read_back_as_it_was(some_config, changed):
    config = from_flat(values_of(some_config) | changed, some_config.choices)
    assert {key: config.flat()[key] for key in changed if changed[key] is not None} == {
        key: value for key, value in changed.items() if value is not None
    }
    assert from_flat(values_of(config), config.choices) == config


def test_whole_numbers_pass_as_fractions_but_not_the_other_way(some_config):
    assert from_flat(values_of(some_config) | {"lr": 1}, some_config.choices).optimizer.lr == 1.0
    with pytest.raises(UserError, match=r"n_layer=2\.0: needs a whole number"):
        from_flat(values_of(some_config) | {"n_layer": 2.0}, some_config.choices)


@pytest.mark.parametrize(
    ("key", "value"), [("max_steps", "10"), ("lr", "1e-3"), ("lr", "-.5"), ("bias", "true")]
)
def test_a_number_in_quotes_is_said_to_be_text(some_config, key, value):
    with pytest.raises(UserError, match=f"{key}={value}: needs .*; in quotes it is text$"):
        from_flat(values_of(some_config) | {key: value}, some_config.choices)


@pytest.mark.parametrize("text", [" lr=0.1", "\tlr=0.1", " --help"])
def test_a_blank_before_an_argument_is_said(text):
    with pytest.raises(UserError, match="an argument begins without a blank"):
        parsed(text)


@given(st.text(min_size=1).filter(lambda key: key not in CHOICES))
def test_no_other_key_is_taken(some_config, key):
    if not any(key in keys_of(part) for part in PARTS):
        with pytest.raises(UserError) as error:
            from_flat(values_of(some_config) | {key: 1}, some_config.choices)
        assert str(error.value).startswith(printable(f"{key}=1: there is no key"))


@pytest.mark.parametrize("key", keys_of(SweepConfig))
def test_a_run_has_no_keys_of_sweeps(some_config, key):
    with pytest.raises(UserError, match=f"^{key}=1: there is no key {key}"):
        from_flat(values_of(some_config) | {key: 1}, some_config.choices)


@pytest.mark.parametrize("part", PARTS)
@given(
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.integers())
)
def test_a_value_is_kept_as_it_is_or_refused_by_name(part, value):
    hints = get_type_hints(part, include_extras=True)
    for key in keys_of(part):
        hint = hints[key]
        try:
            assert check_value(key, value, hint) == value
        except UserError as error:
            typed = {"None": "null", "True": "true", "False": "false"}.get(repr(value), value)
            assert str(error).startswith(printable(f"{key}={typed}: "))
        except TypeError:
            pytest.fail(f"{key}={value} is neither kept nor refused")


def test_derived_values(some_config):
    values = values_of(some_config) | {
        "name": None,
        "decay_steps": None,
        "min_lr": None,
        "max_steps": 77,
        "lr": 0.5,
    }
    config = from_flat(values, some_config.choices)
    assert (config.run.name, config.run.decay_steps, config.run.min_lr) == ("gpt_nano", 77, 0.05)


@given(
    st.sampled_from(["${oc.env:HOME}", "a${seed}b", "${x}"]),
    st.sampled_from(["name", "seed", "lr", "schedule"]),
)
def test_a_value_is_no_lookup(some_config, value, key):
    with pytest.raises(UserError, match="interpolation is not allowed"):
        from_flat(values_of(some_config) | {key: value}, some_config.choices)
