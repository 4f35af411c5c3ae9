"""Kubernetes objects reduced to what decisions need.

The cache keeps these views instead of whole objects: a few hundred bytes each. They are parsed from plain dictionaries,
as watches, lists and single reads all return them.
"""
