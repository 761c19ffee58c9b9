"""The web page of app.py: a module for each tab, one for its limits, one for the settings in its address."""
