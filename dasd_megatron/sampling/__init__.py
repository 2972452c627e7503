"""Engines that sample and score, and the steps that use them."""
