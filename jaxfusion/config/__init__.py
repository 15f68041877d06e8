"""Typed configuration: what can be set, and how files and command lines set it."""

from jaxfusion.config.convert import default_config, from_dict, override, read_config, to_dict
from jaxfusion.config.model import LoraConfig, ModelConfig
from jaxfusion.config.run import Config

__all__ = ["Config", "LoraConfig", "ModelConfig", "default_config", "from_dict", "override", "read_config", "to_dict"]
