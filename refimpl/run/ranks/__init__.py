"""How the processes of a run tell a peer that is slow from one that has stopped, and how they name it."""
