"""The page of a run: from students' records, their cache and, where given, the rows held out."""
