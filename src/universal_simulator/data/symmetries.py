"""Symmetries that a config asks for, held against what the equation of its data declares, before data are made."""

from __future__ import annotations

from universal_simulator.configuration.schema import RunConfig
from universal_simulator.data.sufficiency import announced
from universal_simulator.errors import ConfigurationError

MEMBERS_KEY = "model.member_representations"


def refuse_undeclared(config: RunConfig) -> None:
    """ConfigurationError with every symmetry that a frame, an augmentation or members ask for and nobody declared.

    A data file that does not lie here says its equation where it is opened.
    """
    known = announced(config.data)
    if known is None:
        return
    equation = known.equation
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
        raise ConfigurationError(f"{config.name} on {config.data.file or config.data.dataset}", faults)
