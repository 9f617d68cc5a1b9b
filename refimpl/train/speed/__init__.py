"""How fast a run will be, from datasheets or measured, and when it will end."""
