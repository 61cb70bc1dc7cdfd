"""A plugin whose import fails, as one does that was built for another torch."""

raise RuntimeError("the extension [cuda] was built for another torch")
