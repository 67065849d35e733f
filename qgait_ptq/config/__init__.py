"""Settings and recipes: schemas, and YAML that others may have written."""

from qgait_ptq.config.schema import BudgetConfig, FinetuneConfig, IdcConfig, LayerBits, QuantConfig

__all__ = ["BudgetConfig", "FinetuneConfig", "IdcConfig", "LayerBits", "QuantConfig"]
