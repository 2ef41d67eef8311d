"""The slot program: what runs on a host to start, swap, drain and stop call slots without ending a call.

Standard library only (Python 3.11 or newer): it is shipped verbatim and run by the host's own interpreter.
"""
