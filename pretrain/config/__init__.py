"""Run configuration: schema, loading, validation, derived numbers. Imports pydantic and yaml only."""

from pretrain.config.errors import ConfigError
from pretrain.config.load import dump_yaml, load_config
from pretrain.config.schema import JobConfig, RunConfig

__all__ = ["ConfigError", "JobConfig", "RunConfig", "dump_yaml", "load_config"]
