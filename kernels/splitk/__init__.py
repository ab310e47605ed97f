"""Splitting the K dimension over programs, and adding the parts up in a fixed order."""
