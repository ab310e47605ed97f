"""The recipes that ship, as TOML files beside this one."""
