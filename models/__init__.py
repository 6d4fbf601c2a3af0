"""Hugging Face families: one file per `model_type`, found by its name. `named/` holds configs of well-known models.

A family file ends with `FAMILY = Family(...)`; `_family.Family` documents what it declares.
"""
