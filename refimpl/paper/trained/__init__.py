"""Small networks, trained by the project's own step, on which claims that need training are measured."""
