"""The plugin host: hooks, registry, loading."""
