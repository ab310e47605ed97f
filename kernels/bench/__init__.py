"""Measuring the products of layouts on the machine at hand: speed, and the best cut."""
