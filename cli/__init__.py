"""The `tersor` command: the one place where the offline and the online journey meet."""
