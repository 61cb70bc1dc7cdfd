"""What mim-example brings to mim-core."""

from mim_core import hookimpl


@hookimpl
def mim_register_maskers(register):
    """One masker."""
    register(name="checker", load="mim_example.masker:CheckerMasker", summary="Every other unit, phase by key.")


@hookimpl
def mim_register_methods(register):
    """One method of another kind than a masked autoencoder."""
    register(name="pull", load="mim_example.method:Pull", summary="Two masks of a sample should look alike.")
