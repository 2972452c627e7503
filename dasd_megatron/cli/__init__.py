"""The `dasd` command."""
