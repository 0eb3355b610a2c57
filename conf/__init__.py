"""Hydra configuration of Omnigram, found as `pkg://omnigram.conf`; the groups mirror the code folders."""
