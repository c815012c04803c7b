"""One module a command. Each imports what is heavy inside its functions, so that no command pays for another's parts."""
