"""Reading a platform that was built by hand, and the site file that describes it. Pure; `facts/legacy.py` reads."""
