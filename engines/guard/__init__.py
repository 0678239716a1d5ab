"""The work is done in a child process, so that no crash of any library is more than one line, and nothing is left."""
