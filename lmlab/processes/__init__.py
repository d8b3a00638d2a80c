"""New processes, forked from a server that has imported torch and the lab once."""
