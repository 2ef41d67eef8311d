"""Throwaway hosts: real Debian systems with systemd, sshd and apt on addresses of their own, for tests and demos."""
