"""Where everything is wired together: the watch, the settings, the probes, and the program itself."""
