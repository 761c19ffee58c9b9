"""The web page of app.py: a module for each tab, one for its limits, one for the settings in its address."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")  # names of this machine, which no other machine can reach
