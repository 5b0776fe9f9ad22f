"""Cleaning of text: repair, language, quality, personal data, benchmark text; every step is counted."""

from __future__ import annotations

from data_tools.clean.cleaner import Cleaner
from data_tools.clean.config import CleanConfig
from data_tools.clean.funnel import Funnel, publish_funnel
from data_tools.clean.load import load_clean_config
from data_tools.clean.outcome import Outcome

__all__ = ["CleanConfig", "Cleaner", "Funnel", "Outcome", "load_clean_config", "publish_funnel"]
