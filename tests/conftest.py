"""Fixtures for all tests."""

from tests.s3server import seaweed

__all__ = ["seaweed"]
