"""Reading files that nobody vouches for, and writing files that nobody may lose."""
