"""Tersor's own services."""
