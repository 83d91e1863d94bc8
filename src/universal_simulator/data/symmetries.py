"""Symmetries that a config asks for, held against what the equation of its data declares, before data are made."""

from __future__ import annotations

from pathlib import Path

from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.configuration.locations import DATA_FILES, find
from universal_simulator.configuration.schema import RunConfig
from universal_simulator.data.specification import DatasetSpec
from universal_simulator.errors import ConfigurationError
from universal_simulator.physics.equations import equation_named

MEMBERS_KEY = "model.member_representations"


def refuse_undeclared(config: RunConfig) -> None:
    """ConfigurationError with every symmetry that a frame, an augmentation or members ask for and nobody declared.

    Of data named by their specification; a data file says its equation where it is opened.
    """
    named = config.data.dataset
    if named is None or Path(named).suffix in DATA_FILES:
        return
    source = find("configs/data", named)
    equation = equation_named(validate(DatasetSpec, read_mapping(source), str(source)).equation)
    faults: list[str] = []
    for key, names in (
        ("model.canonical_frame", config.model.canonical_frame),
        ("training.augmentation", config.training.augmentation),
    ):
        try:
            equation.require_symmetries(names, key)
        except ConfigurationError as error:
            faults += [f"{key}: {fault}" for fault in error.faults]
    if config.model.member_representations:
        try:
            equation.require_representations(MEMBERS_KEY)
        except ConfigurationError as error:
            faults += [f"{MEMBERS_KEY}: {fault}" for fault in error.faults]
    if faults:
        raise ConfigurationError(f"{config.name} on {named}", faults)
