"""The commands. Each is a function ``(program, plugin, arguments) -> exit code``."""
