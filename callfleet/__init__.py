"""callfleet: provision hosts that carry live phone calls, and change them without dropping one."""

__version__ = "0.1.0"
