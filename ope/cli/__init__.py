"""The commands of ``python -m ope``; `ope.__main__` reads the command line and calls them."""
