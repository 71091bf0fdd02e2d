"""Bookinfo: four small HTTP services to watch a mesh with."""
