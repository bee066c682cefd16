"""Chooses by measurement how a model runs on this machine, and keeps the choice; `classifier.load` calls it.

`machine` names the machine, `cache` keeps choices, `rounds` times candidates, `choice` decides among them.
"""
