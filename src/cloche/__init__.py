"""cloche: an OCI container runtime that gives every container its own virtual machine."""

__version__ = "0.1.0"
