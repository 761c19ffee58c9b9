"""The ground floor: ops, processes, files and command lines. Imports nothing else of this project."""
