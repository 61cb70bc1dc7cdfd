"""A plugin that was installed without what it needs."""

import a_library_that_is_not_installed  # noqa: F401
