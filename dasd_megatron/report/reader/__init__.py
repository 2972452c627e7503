"""The report's reader: samples of a run's texts, side by side, to search and read in the page itself."""
