"""Built-in analyses; each sub-package declares one."""
