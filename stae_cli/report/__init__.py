"""The page that `stae roundtrip` writes: pictures to compare in a browser, and their figures."""
