"""Files in and out: our own committed folders, and other tools' formats."""
