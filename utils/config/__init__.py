"""Configurations: YAML in, a checked EasyDict with every default and derived value out."""

from utils.config.loading import CLASS_OUTPUTS, load_config, read_config, stored_config, to_plain

__all__ = ["CLASS_OUTPUTS", "load_config", "read_config", "stored_config", "to_plain"]
