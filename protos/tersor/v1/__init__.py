"""Version 1 of Tersor's own services."""
