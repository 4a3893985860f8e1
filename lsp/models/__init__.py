"""Architectures, written for one device."""
