"""Training and evaluation: one loop each, and the recipes that use them."""

from apqkit.training.finetuning import finetune

__all__ = ["finetune"]
