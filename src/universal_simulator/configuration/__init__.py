"""Configs, profiles and plans: strict YAML in, frozen and validated values out."""

from universal_simulator.configuration.loader import LoadedConfig, config_hash, load_config

__all__ = ["LoadedConfig", "config_hash", "load_config"]
