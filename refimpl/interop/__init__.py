"""Reading and writing models: this program's run folders, and other tools' formats."""
