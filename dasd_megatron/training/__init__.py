"""Megatron-Core training."""

from dasd_megatron.training.platform import prepare

prepare()  # before any module of this package, or of the conversion, imports megatron
