"""What users' code and stores may do to an engine, tried by the command: the right outcome, a reason, and all else goes on."""
