"""A plugin for a mim-core to come; it is not imported, so that nothing here is reached."""

raise AssertionError("imported, though its requirement is not met")
