"""How arrays lie in files: one module a layout, and the bounds that all keep."""
