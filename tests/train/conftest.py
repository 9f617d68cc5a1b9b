"""The fork server of the tests with several ranks."""

from tests.train.processes import start_server

start_server()
